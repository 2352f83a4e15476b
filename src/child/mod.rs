//! Child processes: started so that they never outlive this process, with their output and their memory bounded.

pub mod cgroup;
pub mod output;
pub mod spawn;
