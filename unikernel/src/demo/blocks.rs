//! The disk as blocks of 4 KiB: a pattern in which each block is like no other, and a hash that tells where two disks
//! differ (whether they do is SHA-256's to say).

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Bytes of a chunk: what is read and compared at a time.
pub const CHUNK: usize = 1 << 20;

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads a number over all bits; no two numbers come out the same.
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The words of a block of the pattern.
fn words(seed: u64, block: u64) -> impl Iterator<Item = u64> {
    let first = mix(seed.wrapping_add(block));
    (1..).map(move |at: u64| first.wrapping_add(at.wrapping_mul(ODD)))
}

/// Fills whole blocks, the first of which is number `block` of the disk.
pub fn fill(seed: u64, block: u64, data: &mut [u8]) {
    for (number, data) in (block..).zip(data.chunks_mut(BLOCK)) {
        for (to, word) in data.chunks_exact_mut(8).zip(words(seed, number)) {
            to.copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// The first block that is not as [`fill`] left it.
pub fn first_wrong(seed: u64, block: u64, data: &[u8]) -> Option<u64> {
    let wrong = |(number, data): &(u64, &[u8])| {
        data.chunks_exact(8).zip(words(seed, *number)).any(|(found, word)| found != word.to_le_bytes())
    };
    (block..).zip(data.chunks(BLOCK)).find(wrong).map(|(number, _)| number)
}

/// A hash of each block; the last may be short.
pub fn hashes(data: &[u8]) -> impl Iterator<Item = u64> {
    data.chunks(BLOCK).map(|block| {
        let (words, rest) = block.as_chunks::<8>();
        let hash = words
            .iter()
            .fold(rest.len() as u64, |hash, word| (hash ^ u64::from_le_bytes(*word)).wrapping_mul(ODD).rotate_left(29));
        mix(rest.iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(ODD)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_bit_and_a_block_in_another_place_are_found() {
        let mut data = vec![0; 4 * BLOCK];
        fill(7, 100, &mut data);
        assert_eq!(first_wrong(7, 100, &data), None);
        assert_eq!(first_wrong(7, 101, &data), Some(101));
        assert_eq!(first_wrong(8, 100, &data), Some(100));
        data[2 * BLOCK + 4095] ^= 0x80;
        assert_eq!(first_wrong(7, 100, &data), Some(102));
    }

    #[test]
    fn one_flipped_bit_changes_the_hash_of_its_block_only() {
        let mut data = vec![0; 3 * BLOCK + 512];
        let before: Vec<u64> = hashes(&data).collect();
        assert_eq!(before.len(), 4);
        for at in [0, BLOCK - 1, BLOCK, 3 * BLOCK + 511] {
            data[at] ^= 1;
            let differ: Vec<usize> = (0..4).filter(|&n| hashes(&data).nth(n) != Some(before[n])).collect();
            assert_eq!(differ, [at / BLOCK]);
            data[at] ^= 1;
        }
    }
}
