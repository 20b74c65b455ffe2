//! Ethernet frames as the switch sees them: where one goes, and a checksum that was left to hardware. Pure.

/// Length of the header that VXLAN puts in front of a frame.
const VXLAN_HEADER_BYTES: usize = 8;

/// Length of an Ethernet header.
const ETHERNET_HEADER_BYTES: usize = 14;

/// Where the frame in `packet` goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination {
    /// The host of this number: the last byte of its address.
    Host(u8),
    /// Everybody.
    All,
}

/// Reads the destination of a packet as VXLAN sent it; `None` if it is none.
pub(super) fn destination(packet: &[u8]) -> Option<Destination> {
    let frame = packet.get(VXLAN_HEADER_BYTES..).filter(|frame| frame.len() >= ETHERNET_HEADER_BYTES)?;
    Some(if frame[0] & 1 == 1 { Destination::All } else { Destination::Host(frame[5]) })
}

/// Fills in the checksum of TCP or UDP over IPv4. The sending kernel leaves it to a network card that is not there.
pub(super) fn mend_checksum(packet: &mut [u8]) {
    let Some(frame) = packet.get_mut(VXLAN_HEADER_BYTES..) else { return };
    let is_ipv4 = frame.get(12..14) == Some(&[0x08, 0x00]);
    let Some(datagram) = frame.get_mut(ETHERNET_HEADER_BYTES..).filter(|_| is_ipv4) else { return };
    let Some(&[first, _, high, low, ..]) = datagram.get(..20) else { return };
    let (header, total) = (usize::from(first & 0x0f) * 4, usize::from(u16::from_be_bytes([high, low])));
    let protocol = datagram[9];
    let place = match protocol {
        6 => 16,
        17 => 6,
        _ => return,
    };
    let mut sum: u32 = datagram[12..20].chunks_exact(2).map(word).sum();
    let Some(segment) = datagram.get_mut(header..total).filter(|segment| segment.len() >= place + 2) else { return };
    segment[place..place + 2].fill(0);
    sum += u32::from(protocol) + segment.len() as u32;
    sum += segment.chunks(2).map(word).fold(0, |sum: u32, word| fold(sum + word));
    let checksum = !(fold(sum) as u16);
    segment[place..place + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Two bytes as a number; a missing second one is zero.
fn word(bytes: &[u8]) -> u32 {
    u32::from(u16::from_be_bytes([bytes[0], bytes.get(1).copied().unwrap_or(0)]))
}

/// Adds what went over 16 bits.
fn fold(mut sum: u32) -> u32 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// VXLAN header, Ethernet header to host 101, and an IPv4 datagram.
    fn packet(datagram: &[u8]) -> Vec<u8> {
        let mut packet = vec![8, 0, 0, 0, 0, 0, 1, 0];
        packet.extend([2, 0, 0, 0, 0, 101, 2, 0, 0, 0, 0, 1, 0x08, 0x00]);
        packet.extend(datagram);
        packet
    }

    #[test]
    fn the_destination_is_the_last_byte_of_the_hosts_address() {
        let mut frame = packet(&[]);
        assert_eq!(destination(&frame), Some(Destination::Host(101)));
        frame[8..14].fill(0xff);
        assert_eq!(destination(&frame), Some(Destination::All));
        assert_eq!(destination(&frame[..20]), None);
        assert_eq!(destination(&[]), None);
    }

    #[test]
    fn a_checksum_is_filled_in() {
        // UDP from 10.0.0.1:1 to 10.0.0.2:2 with one byte: the sum over an odd length, with the pseudo header.
        let mut datagram = vec![0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        datagram.extend([0, 1, 0, 2, 0, 9, 0xab, 0xcd, 0x7f]);
        // What comes after the datagram is Ethernet's padding.
        datagram.extend([0xff; 4]);
        let mut whole = packet(&datagram);
        mend_checksum(&mut whole);
        let segment = &whole[VXLAN_HEADER_BYTES + ETHERNET_HEADER_BYTES + 20..][..9];
        // 0a00 + 0001 + 0a00 + 0002 + 0011 + 0009 (pseudo header) + 0001 + 0002 + 0009 + 7f00 = 9329.
        assert_eq!(u16::from_be_bytes([segment[6], segment[7]]), !0x9329);
    }

    #[test]
    fn whatever_is_no_datagram_is_left_alone() {
        for length in 0..60 {
            let mut junk = packet(&[0x4f; 60])[..length].to_vec();
            let before = junk.clone();
            mend_checksum(&mut junk);
            assert_eq!(junk.len(), before.len());
        }
        let mut arp = packet(&[0; 28]);
        arp[21] = 0x06;
        let before = arp.clone();
        mend_checksum(&mut arp);
        assert_eq!(arp, before);
    }
}
