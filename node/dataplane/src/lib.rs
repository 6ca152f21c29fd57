//! The data plane's contract, and its implementations.

use evergate_esp as _;
