//! Accept and Content-Type → media type and transform. Pure.
