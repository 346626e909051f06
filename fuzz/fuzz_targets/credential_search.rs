//! Any values and any bytes, read in any chunks: what is found is what the bytes hold, it is overwritten, and nothing else is.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use nixbox::files::search::findings::{FileSearch, Findings, MARK};
use nixbox::files::search::fingerprint::SearchKey;
use nixbox::files::search::forms::{Form, forms_of};
use nixbox::files::search::searcher::Searcher;

fuzz_target!(|data: (Vec<Vec<u8>>, Vec<u8>, Vec<(u8, u16)>, Vec<u16>)| {
    let (values, mut bytes, planted, cuts) = data;
    let key = SearchKey::new([5; 32]);
    let mut forms: Vec<(u32, Form, Vec<u8>)> = Vec::new();
    for (number, value) in (0..).zip(values.iter().take(8)) {
        for (form, pattern) in forms_of(&value[..value.len().min(256)]) {
            // A pattern has no zeros at its beginning.
            let zeros = pattern.iter().take_while(|byte| **byte == 0).count();
            if pattern.len() - zeros >= 8 {
                forms.push((number, form, pattern[zeros..].to_vec()));
            }
        }
    }
    for (form, at) in planted {
        if let Some((.., pattern)) = forms.get(usize::from(form)) {
            let at = usize::from(at).min(bytes.len());
            bytes.splice(at..at, pattern.iter().copied());
        }
    }
    let wanted =
        forms.iter().filter_map(|(value, form, pattern)| Some((key.fingerprint(pattern)?, *value, *form)));
    let searcher = Arc::new(Searcher::new(key.clone(), wanted.collect()));
    let search = FileSearch::new(searcher, (0..8).collect());

    let mut cuts: Vec<usize> =
        cuts.iter().map(|cut| usize::from(*cut)).filter(|cut| *cut < bytes.len()).collect();
    cuts.push(bytes.len());
    cuts.sort_unstable();
    let (mut written, mut found) = (Vec::new(), Findings::default());
    for end in cuts {
        let start = written.len();
        let from = start - start.min(search.margin());
        let mut buffer = bytes[from..bytes.len().min(end + search.margin())].to_vec();
        found.add(search.chunk(&mut buffer, start - from..end - from, from as u64));
        written.extend_from_slice(&buffer[start - from..end - from]);
    }

    let mut expected = bytes.clone();
    let mut count = 0;
    for (.., pattern) in &forms {
        for at in 0..bytes.len() {
            if bytes[at..].starts_with(pattern) {
                expected[at..at + pattern.len()].fill(MARK);
                count += 1;
            }
        }
    }
    assert_eq!(written, expected);
    assert_eq!(found.counts.values().sum::<u64>(), count);
});
