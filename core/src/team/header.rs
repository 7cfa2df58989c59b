//! What every process says before each exchange.

use sha2::{Digest, Sha256};

/// The first bytes, which distinguish versions of this format.
const FORMAT: [u8; 4] = *b"SpT1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Exchanges before this one.
    pub turn: u64,
    /// A [`place`]: what is exchanged.
    pub place: u32,
    /// Bytes that follow.
    pub len: u64,
    /// Whether the user of this process has asked to stop.
    pub stops: bool,
    pub failed: bool,
}

/// The number that identifies what is exchanged.
pub fn place(what: &str) -> u32 {
    let hash = Sha256::digest(what.as_bytes());
    u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]])
}

impl Header {
    const LEN: usize = 26;

    pub fn to_bytes(self) -> [u8; Header::LEN] {
        let mut bytes = [0; Header::LEN];
        bytes[..4].copy_from_slice(&FORMAT);
        bytes[4..8].copy_from_slice(&self.place.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.turn.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.len.to_le_bytes());
        (bytes[24], bytes[25]) = (self.stops.into(), self.failed.into());
        bytes
    }

    /// A header of a different format gets a turn that never comes.
    pub fn from_bytes(bytes: &[u8]) -> Header {
        let number = |range: std::ops::Range<usize>| {
            bytes[range].iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte))
        };
        let turn = if bytes[..4] == FORMAT { number(8..16) } else { u64::MAX };
        Header { turn, place: number(4..8) as u32, len: number(16..24), stops: bytes[24] != 0, failed: bytes[25] != 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_back_and_a_different_format_is_out_of_turn() {
        let header = Header { turn: 1 << 40, place: place("gradients"), len: 77, stops: true, failed: false };
        let mut bytes = header.to_bytes();
        assert_eq!(Header::from_bytes(&bytes), header);
        bytes[3] ^= 1;
        assert_eq!(Header::from_bytes(&bytes).turn, u64::MAX);
    }
}
