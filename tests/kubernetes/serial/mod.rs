//! Rows that take away what all stand on. One after the other, each leaving the cluster as it found it; `uninstall` is last.

mod apiserver;
mod bench;
mod controllers;
mod nodes;
mod postgres;
mod uninstall;
mod upgrade;
