//! Generated gRPC code. Its only content is what `protox` and `tonic` make of the `.proto` files beside it.
#![allow(missing_docs, clippy::all)]

/// The administration API (`admin.proto`).
pub mod admin {
    tonic::include_proto!("evergate.admin.v1");
}
