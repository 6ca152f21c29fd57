//! The drills: what a person would try on a lab bench, against real processes.

mod selfcheck;
