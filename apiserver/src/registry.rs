//! What each verb means for any object. No HTTP here.

pub mod names;
