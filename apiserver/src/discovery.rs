//! Which groups, versions and resources there are: `/api`, `/apis` and below.
