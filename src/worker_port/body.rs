//! Checks of what callers of the worker port send. What is wrong with a body is answered as a problem that its sender can
//! mend.

use axum::http::StatusCode;

use crate::problem::Problem;
use crate::turn::frame::Frame;
use crate::turn::keys::check_name;
use crate::wire::{Finish, MAX_LOG_UNITS, check_frame};

/// The most turns that one finish may end.
const MAX_TURNS_OF_A_FINISH: usize = 64;

/// Frames in the form in which they are stored. A frame that is too large is refused (see [`check_frame`]).
pub(super) fn storable(frames: Vec<Frame>) -> Result<Vec<Frame>, Problem> {
    for frame in &frames {
        check_frame(frame).map_err(|error| Problem::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()))?;
    }
    Ok(frames.into_iter().map(Frame::storable).collect())
}

/// Refuses an offset, in log units, beyond the longest log. One near the end of its type would overflow the sums that it
/// takes part in.
pub(super) fn check_offset(offset: u64) -> Result<(), Problem> {
    if offset > MAX_LOG_UNITS {
        return Err(Problem::bad_request(format!(
            "no log is longer than {MAX_LOG_UNITS}; the offset {offset} is in none"
        )));
    }
    Ok(())
}

/// Refuses a finish that names no turn, or too many, or an offset or a reply id that cannot be.
pub(super) fn check_finish(finish: &Finish) -> Result<(), Problem> {
    check_offset(finish.end)?;
    check_offset(finish.tail.as_ref().map_or(0, |t| t.offset))?;
    if finish.turn_ids.is_empty() || finish.turn_ids.len() > MAX_TURNS_OF_A_FINISH {
        return Err(Problem::bad_request(format!("turnIds must name 1 to {MAX_TURNS_OF_A_FINISH} turns")));
    }
    check_name("replyId", &finish.reply_id).map_err(|e| Problem::bad_request(e.to_string()))
}
