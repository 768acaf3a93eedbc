//! The HTTP edge of each verb: it reads, asks the registry once, and answers.
