//! Objects of many etcds under one order.
