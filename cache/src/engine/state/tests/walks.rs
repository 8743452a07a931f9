//! Claims about single walks that a random run would seldom meet.
