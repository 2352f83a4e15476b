//! What a client sees of its turns, over real gateways and a real Postgres; time passes by moving timestamps in the database.

mod ends;
mod gone;
mod hands;
mod moves;
mod replies;
mod returns;
mod shared;
