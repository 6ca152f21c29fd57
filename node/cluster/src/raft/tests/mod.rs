//! The store under the library's own suite, and whole clusters in one process over real TLS.

mod changes;
mod failures;
mod forward;
mod generations;
mod lab;
mod membership;
mod storage;
