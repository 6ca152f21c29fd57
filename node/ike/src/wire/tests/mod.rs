//! The codec against bytes laid out by hand after RFC 7296 §3, and against generated messages.

mod errors;
mod properties;
mod vectors;

/// Bytes from hex digits; blanks are for the reader.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    assert_eq!(digits.len() % 2, 0, "odd number of digits");
    digits
        .chunks(2)
        .map(|d| u8::try_from(d[0] * 16 + d[1]).unwrap())
        .collect()
}

/// An IKE_SA_INIT request with SA, KE, Nonce and a Notify.
fn sa_init() -> Vec<u8> {
    hex(&format!(
        "0001020304050607 0000000000000000 21 20 22 08 00000000 000000a4
         22 00 0030  00 00 002c 01 01 00 04
           03 00 000c 01 00 0014 800e 0100
           03 00 0008 02 00 0005
           03 00 0008 03 00 0000
           00 00 0008 04 00 001f
         28 00 0028  001f 0000 {}
         29 00 0014  {}
         00 00 001c  00 00 4004 {}",
        "aa".repeat(32),
        "bb".repeat(16),
        "cc".repeat(20),
    ))
}
