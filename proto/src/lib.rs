//! Generated gRPC code. Its only content is what `protox` and `tonic` make of the `.proto` files beside it.
#![allow(missing_docs, clippy::all)]

/// The administration API (`admin.proto`).
pub mod admin {
    tonic::include_proto!("evergate.admin.v1");
}

/// What members say to each other (`cluster.proto`).
pub mod cluster {
    tonic::include_proto!("evergate.cluster.v1");
}

/// What operators ask of one member and another does (`forward.proto`).
pub mod forward {
    include!(concat!(env!("OUT_DIR"), "/forward/evergate.forward.v1.rs"));
}

/// The administration services described, as reflection serves it: an encoded `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
