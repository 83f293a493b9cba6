//! TensorBoard's event files: records of TFRecord framing (`tensorflow/core/lib/io/record_writer.h`), each one protobuf message
//! `tensorflow.Event` (`tensorflow/core/util/event.proto`).
//!
//! A record is its length as u64, the masked CRC-32C of those 8 bytes, the message, and the masked CRC-32C of the message, all
//! little-endian. Of `Event` and the messages inside it these fields are written:
//!
//! ```text
//! Event          1: wall_time (double)  2: step (int64)  3: file_version (string)  5: summary (Summary)
//! Summary        1: value (Summary.Value, repeated)
//! Summary.Value  1: tag (string)        2: simple_value (float)
//! ```

/// What the first record of a file says, by which readers know the others.
const FILE_VERSION: &[u8] = b"brain.Event:2";

/// The record that a file begins with.
pub(super) fn opening(wall_time: f64) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, wall_time);
    event.bytes(3, FILE_VERSION);
    record(&event.0)
}

/// The record of a step's scalars; the wall time is in seconds since 1970.
pub(super) fn scalars<'a>(wall_time: f64, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> Vec<u8> {
    let mut summary = Message::default();
    for (tag, value) in values {
        let mut one = Message::default();
        one.bytes(1, tag.as_bytes());
        one.float(2, value as f32);
        summary.bytes(1, &one.0);
    }
    let mut event = Message::default();
    event.double(1, wall_time);
    event.varint(2, step);
    event.bytes(5, &summary.0);
    record(&event.0)
}

/// A protobuf message as it is put together.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// The field's number and how its value is written: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
    fn key(&mut self, field: u64, wire: u64) {
        self.raw_varint(field << 3 | wire);
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.raw_varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.raw_varint(value.len() as u64);
        self.0.extend(value);
    }
}

fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let crc = |bytes: &[u8]| masked(crc32c(bytes)).to_le_bytes();
    [&length, &crc(&length)[..], message, &crc(message)].concat()
}

/// As records keep checksums, so that a checksum of data with checksums inside stays a good one.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), reflected.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| crc >> 8 ^ TABLE[(crc as u8 ^ byte) as usize])
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < table.len() {
        let (mut crc, mut bit) = (i as u32, 0);
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_castagnolis() {
        // RFC 3720, B.4, and the check value of the catalogue.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn records_are_those_of_tensorboards_own_writer() {
        // tensorboard 2.21's `RecordWriter` of the same events.
        let golden = "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c300000000000000095f5d05f\
                      0900001040fc54d94110ac022a220a0b0a046c6f7373150000003f0a130a0c68656c645f6f75742f667675156f1283bad6d71bf4";
        let scalars = scalars(1_700_000_000.25, 300, [("loss", 0.5), ("held_out/fvu", -1e-3)]);
        let written = [opening(1.5), scalars].concat();
        assert_eq!(written.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), golden);
    }
}
