//! Numbers that IANA assigned to IKEv2, as types.

use serde::{Deserialize, Serialize};

/// Declares a newtype over an IANA number with named constants and a `Debug` that shows the name.
macro_rules! iana {
    ($(#[$meta:meta])* $name:ident($repr:ty) { $($(#[$cmeta:meta])* $konst:ident = $value:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $repr);
        impl $name {
            $($(#[$cmeta])* pub const $konst: Self = Self($value);)*
        }
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.0 {
                    $($value => f.write_str(stringify!($konst)),)*
                    other => write!(f, concat!(stringify!($name), "({})"), other),
                }
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Debug::fmt(self, f)
            }
        }
    };
}

iana! {
    /// Exchange types (RFC 7296 §3.1).
    ExchangeType(u8) {
        /// IKE_SA_INIT.
        IKE_SA_INIT = 34,
        /// IKE_AUTH.
        IKE_AUTH = 35,
        /// CREATE_CHILD_SA.
        CREATE_CHILD_SA = 36,
        /// INFORMATIONAL.
        INFORMATIONAL = 37,
        /// IKE_INTERMEDIATE (RFC 9242).
        IKE_INTERMEDIATE = 43,
        /// IKE_FOLLOWUP_KE (RFC 9370).
        IKE_FOLLOWUP_KE = 44,
    }
}

iana! {
    /// Payload types (RFC 7296 §3.2).
    PayloadType(u8) {
        /// End of the chain.
        NONE = 0,
        /// Security Association.
        SA = 33,
        /// Key Exchange.
        KE = 34,
        /// Identification of the initiator.
        ID_I = 35,
        /// Identification of the responder.
        ID_R = 36,
        /// Certificate.
        CERT = 37,
        /// Certificate Request.
        CERTREQ = 38,
        /// Authentication.
        AUTH = 39,
        /// Nonce.
        NONCE = 40,
        /// Notify.
        NOTIFY = 41,
        /// Delete.
        DELETE = 42,
        /// Vendor ID.
        VENDOR = 43,
        /// Traffic Selectors of the initiator.
        TS_I = 44,
        /// Traffic Selectors of the responder.
        TS_R = 45,
        /// Encrypted and Authenticated.
        SK = 46,
        /// Configuration.
        CP = 47,
        /// Extensible Authentication Protocol.
        EAP = 48,
        /// Encrypted and Authenticated Fragment (RFC 7383).
        SKF = 53,
    }
}

iana! {
    /// Notify message types (RFC 7296 §3.10.1); below 16384 errors, from there status.
    NotifyType(u16) {
        /// A payload with the critical bit set was not recognised.
        UNSUPPORTED_CRITICAL_PAYLOAD = 1,
        /// An IKE message came with an SPI that is not known.
        INVALID_IKE_SPI = 4,
        /// The major version of a message is not supported.
        INVALID_MAJOR_VERSION = 5,
        /// The message was malformed.
        INVALID_SYNTAX = 7,
        /// The Message ID was outside the window.
        INVALID_MESSAGE_ID = 9,
        /// An ESP packet came with an SPI that is not known.
        INVALID_SPI = 11,
        /// No proposal was acceptable.
        NO_PROPOSAL_CHOSEN = 14,
        /// The KE payload was of another group than the chosen one; the data names that.
        INVALID_KE_PAYLOAD = 17,
        /// Authentication failed.
        AUTHENTICATION_FAILED = 24,
        /// Only one pair of addresses is acceptable as traffic selectors.
        SINGLE_PAIR_REQUIRED = 34,
        /// No further Child SAs are accepted.
        NO_ADDITIONAL_SAS = 35,
        /// No internal address could be assigned.
        INTERNAL_ADDRESS_FAILURE = 36,
        /// The responder expects a CP(CFG_REQUEST).
        FAILED_CP_REQUIRED = 37,
        /// No traffic selectors were acceptable.
        TS_UNACCEPTABLE = 38,
        /// The packet's selectors do not match the SA.
        INVALID_SELECTORS = 39,
        /// An address update was not carried out (RFC 4555 §4.1.1).
        UNACCEPTABLE_ADDRESSES = 40,
        /// A NAT is on a path that must have none (RFC 4555 §4.1.2).
        UNEXPECTED_NAT_DETECTED = 41,
        /// A collision of exchanges: try again later (RFC 7296 §2.25).
        TEMPORARY_FAILURE = 43,
        /// The Child SA that should be rekeyed or deleted does not exist.
        CHILD_SA_NOT_FOUND = 44,
        /// The additional key exchange that is to go on is not known (RFC 9370).
        STATE_NOT_FOUND = 47,
        /// This IKE SA is the only one with the peer.
        INITIAL_CONTACT = 16384,
        /// The window of outstanding requests.
        SET_WINDOW_SIZE = 16385,
        /// Narrower selectors were possible.
        ADDITIONAL_TS_POSSIBLE = 16386,
        /// IPComp is supported.
        IPCOMP_SUPPORTED = 16387,
        /// Hash of the source address and port.
        NAT_DETECTION_SOURCE_IP = 16388,
        /// Hash of the destination address and port.
        NAT_DETECTION_DESTINATION_IP = 16389,
        /// A cookie to be sent back.
        COOKIE = 16390,
        /// Transport mode is asked for.
        USE_TRANSPORT_MODE = 16391,
        /// No HTTP look-up of certificates.
        HTTP_CERT_LOOKUP_SUPPORTED = 16392,
        /// This CREATE_CHILD_SA rekeys the named Child SA.
        REKEY_SA = 16393,
        /// No TFC padding in ESP.
        ESP_TFC_PADDING_NOT_SUPPORTED = 16394,
        /// Non-first fragments may share the SA.
        NON_FIRST_FRAGMENTS_ALSO = 16395,
        /// MOBIKE (RFC 4555).
        MOBIKE_SUPPORTED = 16396,
        /// Another IPv4 address of the sender (RFC 4555 §4.2.2).
        ADDITIONAL_IP4_ADDRESS = 16397,
        /// Another IPv6 address of the sender (RFC 4555 §4.2.2).
        ADDITIONAL_IP6_ADDRESS = 16398,
        /// The sender has no other addresses (RFC 4555 §4.2.3).
        NO_ADDITIONAL_ADDRESSES = 16399,
        /// From now on the addresses of this message are used (RFC 4555 §4.2.4).
        UPDATE_SA_ADDRESSES = 16400,
        /// MOBIKE return routability (RFC 4555).
        COOKIE2 = 16401,
        /// The addresses that the sender put into the IP header (RFC 4555 §4.2.6).
        NO_NATS_ALLOWED = 16402,
        /// How long the authentication is good for, in seconds (RFC 4478 §3).
        AUTH_LIFETIME = 16403,
        /// Several rounds of authentication are supported (RFC 4739 §3.1).
        MULTIPLE_AUTH_SUPPORTED = 16404,
        /// The sender authenticates again (RFC 4739 §3.2).
        ANOTHER_AUTH_FOLLOWS = 16405,
        /// IKE_AUTH without a Child SA is supported (RFC 6023).
        CHILDLESS_IKEV2_SUPPORTED = 16418,
        /// IKEv2 fragmentation (RFC 7383).
        IKEV2_FRAGMENTATION_SUPPORTED = 16430,
        /// Hash algorithms for signatures (RFC 7427).
        SIGNATURE_HASH_ALGORITHMS = 16431,
        /// A post-quantum pre-shared key can be mixed in (RFC 8784 §3).
        USE_PPK = 16435,
        /// Which one, or that it is (RFC 8784 §3).
        PPK_IDENTITY = 16436,
        /// The AUTH data without it (RFC 8784 §3).
        NO_PPK_AUTH = 16437,
        /// Message ID synchronisation (RFC 6311 §5.1).
        IKEV2_MESSAGE_ID_SYNC_SUPPORTED = 16420,
        /// Replay counter synchronisation (RFC 6311 §5.1).
        IPSEC_REPLAY_COUNTER_SYNC_SUPPORTED = 16421,
        /// Message ID synchronisation data (RFC 6311 §5.2).
        IKEV2_MESSAGE_ID_SYNC = 16422,
        /// Replay counter synchronisation data (RFC 6311 §5.3).
        IPSEC_REPLAY_COUNTER_SYNC = 16423,
        /// IKE_INTERMEDIATE is supported (RFC 9242 §3.1).
        INTERMEDIATE_EXCHANGE_SUPPORTED = 16438,
        /// Names an additional key exchange under way (RFC 9370).
        ADDITIONAL_KEY_EXCHANGE = 16441,
    }
}

impl NotifyType {
    /// Whether this type reports an error (RFC 7296 §3.10.1).
    pub fn is_error(self) -> bool {
        self.0 < 16384
    }
}

iana! {
    /// Security protocols (RFC 7296 §3.3.1).
    Protocol(u8) {
        /// None, as in notifies about no SA.
        NONE = 0,
        /// IKE.
        IKE = 1,
        /// Authentication Header.
        AH = 2,
        /// Encapsulating Security Payload.
        ESP = 3,
    }
}

iana! {
    /// Transform types (RFC 7296 §3.3.2).
    TransformType(u8) {
        /// Encryption algorithm.
        ENCR = 1,
        /// Pseudo-random function.
        PRF = 2,
        /// Integrity algorithm.
        INTEG = 3,
        /// Key exchange method.
        KE = 4,
        /// Extended sequence numbers.
        ESN = 5,
        /// Additional Key Exchange 1 (RFC 9370); the others follow, up to 12.
        ADDKE1 = 6,
    }
}

iana! {
    /// Authentication methods (RFC 7296 §3.8).
    AuthMethod(u8) {
        /// RSA digital signature.
        RSA = 1,
        /// Shared key message integrity code.
        PSK = 2,
        /// ECDSA with SHA-256 on P-256 (RFC 4754).
        ECDSA_256 = 9,
        /// ECDSA with SHA-384 on P-384 (RFC 4754).
        ECDSA_384 = 10,
        /// ECDSA with SHA-512 on P-521 (RFC 4754).
        ECDSA_521 = 11,
        /// Digital signature (RFC 7427).
        SIGNATURE = 14,
    }
}

iana! {
    /// Types of configuration payload (RFC 7296 §3.15).
    CfgType(u8) {
        /// A request for configuration.
        REQUEST = 1,
        /// The answer to a request.
        REPLY = 2,
        /// Configuration is pushed.
        SET = 3,
        /// The answer to a push.
        ACK = 4,
    }
}

iana! {
    /// Configuration attributes (RFC 7296 §3.15.1).
    CfgAttrType(u16) {
        /// An inner IPv4 address.
        INTERNAL_IP4_ADDRESS = 1,
        /// Netmask of the inner IPv4 network.
        INTERNAL_IP4_NETMASK = 2,
        /// IPv4 DNS server.
        INTERNAL_IP4_DNS = 3,
        /// Version of the application.
        APPLICATION_VERSION = 7,
        /// An inner IPv6 address with its prefix length.
        INTERNAL_IP6_ADDRESS = 8,
        /// IPv6 DNS server.
        INTERNAL_IP6_DNS = 10,
        /// A protected IPv4 sub-network.
        INTERNAL_IP4_SUBNET = 13,
        /// Which attributes are supported.
        SUPPORTED_ATTRIBUTES = 14,
        /// A protected IPv6 sub-network.
        INTERNAL_IP6_SUBNET = 15,
    }
}

iana! {
    /// Identification types (RFC 7296 §3.5).
    IdType(u8) {
        /// IPv4 address.
        IPV4_ADDR = 1,
        /// Fully-qualified domain name.
        FQDN = 2,
        /// E-mail address.
        RFC822_ADDR = 3,
        /// IPv6 address.
        IPV6_ADDR = 5,
        /// DER of an X.500 distinguished name.
        DER_ASN1_DN = 9,
        /// DER of an X.500 general name.
        DER_ASN1_GN = 10,
        /// Opaque bytes.
        KEY_ID = 11,
    }
}

/// ENCR transform IDs that we know (RFC 7296 §3.3.2, RFC 3602, RFC 3686, RFC 4106, RFC 4309, RFC 7634, RFC 8750).
pub mod encr {
    /// AES-CBC.
    pub const AES_CBC: u16 = 12;
    /// AES in counter mode.
    pub const AES_CTR: u16 = 13;
    /// AES-CCM with an 8-byte ICV.
    pub const AES_CCM_8: u16 = 14;
    /// AES-CCM with a 12-byte ICV.
    pub const AES_CCM_12: u16 = 15;
    /// AES-CCM with a 16-byte ICV.
    pub const AES_CCM_16: u16 = 16;
    /// AES-GCM with an 8-byte ICV.
    pub const AES_GCM_8: u16 = 18;
    /// AES-GCM with a 12-byte ICV.
    pub const AES_GCM_12: u16 = 19;
    /// AES-GCM with a 16-byte ICV.
    pub const AES_GCM_16: u16 = 20;
    /// ChaCha20-Poly1305.
    pub const CHACHA20_POLY1305: u16 = 28;
    /// AES-CCM with an 8-byte ICV and an implicit IV.
    pub const AES_CCM_8_IIV: u16 = 29;
    /// AES-GCM with a 16-byte ICV and an implicit IV.
    pub const AES_GCM_16_IIV: u16 = 30;
    /// ChaCha20-Poly1305 with an implicit IV.
    pub const CHACHA20_POLY1305_IIV: u16 = 31;
}

/// PRF transform IDs that we know (RFC 7296 §3.3.2, RFC 4434, RFC 4615, RFC 4868).
pub mod prf {
    /// HMAC-SHA1.
    pub const HMAC_SHA1: u16 = 2;
    /// AES-XCBC with 128 bits.
    pub const AES128_XCBC: u16 = 4;
    /// HMAC-SHA2-256.
    pub const HMAC_SHA2_256: u16 = 5;
    /// HMAC-SHA2-384.
    pub const HMAC_SHA2_384: u16 = 6;
    /// HMAC-SHA2-512.
    pub const HMAC_SHA2_512: u16 = 7;
    /// AES-CMAC with 128 bits.
    pub const AES128_CMAC: u16 = 8;
}

/// INTEG transform IDs that we know (RFC 7296 §3.3.2, RFC 4494, RFC 4868).
pub mod integ {
    /// HMAC-SHA1-96.
    pub const HMAC_SHA1_96: u16 = 2;
    /// AES-XCBC-96.
    pub const AES_XCBC_96: u16 = 5;
    /// AES-CMAC-96.
    pub const AES_CMAC_96: u16 = 8;
    /// HMAC-SHA2-256-128.
    pub const HMAC_SHA2_256_128: u16 = 12;
    /// HMAC-SHA2-384-192.
    pub const HMAC_SHA2_384_192: u16 = 13;
    /// HMAC-SHA2-512-256.
    pub const HMAC_SHA2_512_256: u16 = 14;
}

/// Key exchange methods that we know (RFC 3526, RFC 5903, RFC 8031, and the registry for ML-KEM).
pub mod group {
    /// 2048-bit MODP.
    pub const MODP_2048: u16 = 14;
    /// 3072-bit MODP.
    pub const MODP_3072: u16 = 15;
    /// 4096-bit MODP.
    pub const MODP_4096: u16 = 16;
    /// 6144-bit MODP.
    pub const MODP_6144: u16 = 17;
    /// 8192-bit MODP.
    pub const MODP_8192: u16 = 18;
    /// 256-bit random ECP.
    pub const ECP_256: u16 = 19;
    /// 384-bit random ECP.
    pub const ECP_384: u16 = 20;
    /// 521-bit random ECP.
    pub const ECP_521: u16 = 21;
    /// Curve25519.
    pub const CURVE25519: u16 = 31;
    /// Curve448.
    pub const CURVE448: u16 = 32;
    /// ML-KEM-512.
    pub const ML_KEM_512: u16 = 35;
    /// ML-KEM-768.
    pub const ML_KEM_768: u16 = 36;
    /// ML-KEM-1024.
    pub const ML_KEM_1024: u16 = 37;
}
