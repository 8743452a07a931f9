//! Tests of the state: claims about single walks.
