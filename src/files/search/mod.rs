//! The search for credentials in files whose content must not have any, by fingerprints alone.
//!
//! [`forms`] has the encodings in which a value may be kept, [`value`] which parts of a value are searched for,
//! [`fingerprint`] what is kept of them, [`searcher`] the search in bytes, [`first_filter`] and [`suspects`] what makes it fast,
//! [`known`] the file that keeps the fingerprints of a workspace's values, [`token_kinds`] a count of what looks like a
//! well-known kind of token, and [`findings`] what was found in one file while it was read. [`super::copy`] searches while it
//! copies or hashes.
//!
//! What it can find: a value, one of its lines or parts of 256 bytes, or a token within a file, in one of its forms, wherever
//! its bytes follow each other in the file: also across the chunks in which the file is read, and across pages of a memory
//! that are neighbours in the file. What it cannot find: a value that is compressed, encrypted or encoded in another way, one
//! of fewer than 8 bytes, a part of a value that is shorter than what is searched for, and a value that lies across two pages
//! which are neighbours in a process of the guest and not in the file.
//!
//! What somebody learns who has the fingerprints and their key: whether a guess of a value is right, at the price of one
//! BLAKE3, and something of the bytes at the beginning of each part that is searched for. The 20 bits of one form tell little
//! of the 6 bytes that they follow from. But 6 hexadecimal digits are only 3 bytes of a value, and the bits of all its forms
//! together tell its first bytes to those who try out what fits: 8 of them on average, 12 in one of a hundred random tokens,
//! and never more than 14. So a value that can be guessed is known to them, and so is a value of which the rest can be guessed,
//! such as a password of 12 characters. A token with 16 random bytes is not: its rest has to be guessed as a whole, each guess
//! with a BLAKE3. The fingerprints and their key stay in the state directory, readable for the user alone, and are in no
//! snapshot.
//!
//! May use `world` and the rest of `files`, except `copy`.

pub mod findings;
pub mod fingerprint;
mod first_filter;
pub mod forms;
pub mod known;
pub mod searcher;
mod suspects;
pub mod token_kinds;
pub mod value;
