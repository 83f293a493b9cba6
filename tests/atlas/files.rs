//! Saving and loading, and files that are not what they seem.

use std::fs;

use proptest::prelude::*;
use sae::Status;
use sae::atlas::{Atlas, AtlasOptions};

use crate::brute;
use crate::support::*;

fn bytes(atlas: &mut Atlas) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("atlas.safetensors");
    atlas.save(&path).unwrap();
    fs::read(&path).unwrap()
}

fn load(bytes: &[u8], most: u64) -> sae::Result<Atlas> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    Atlas::load(file.path(), most)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.min(32), ..ProptestConfig::default() })]

    #[test]
    fn what_is_loaded_goes_on(corpus in corpus(6, 70), at in 0usize..6) {
        let all = rows(&corpus);
        let (early, late) = all.split_at(corpus.iter().take(at).map(Vec::len).sum());
        let mut atlas = Atlas::new(&options()).unwrap();
        observe(&mut atlas, early, true);
        let saved = bytes(&mut atlas);
        let mut loaded = load(&saved, 0).unwrap();
        prop_assert!(bytes(&mut loaded) == saved, "the same atlas has the same bytes");
        observe(&mut loaded, late, true);
        loaded.finish();
        loaded.latents().for_each(|latent| brute::check(&corpus, latent, &loaded));
        prop_assert_eq!(loaded.totals().tokens as usize, all.len());
    }

    #[test]
    fn broken_files_are_refused_or_sound(corpus in corpus(4, 60), at in 0usize..1 << 20, bit in 0u32..8, cut in 0usize..1 << 20) {
        let mut saved = bytes(&mut seen(&options(), &corpus));
        prop_assert!(load(&saved[..cut % saved.len()], 0).is_err());
        let len = saved.len();
        saved[at % len] ^= 1 << bit;
        // A changed token is a token; whatever else is changed must not be believed blindly, and nothing may panic.
        if let Ok(mut atlas) = load(&saved, 0) {
            let again = bytes(&mut atlas);
            prop_assert_eq!(load(&again, 0).unwrap().totals(), atlas.totals());
        }
    }
}

#[test]
fn memory_is_known_before() {
    let small = options().memory().unwrap();
    let big = AtlasOptions { n_latents: 131_072, ..AtlasOptions::default() }.memory().unwrap();
    assert!(small < 1 << 20 && (2 << 30..3 << 30).contains(&big), "{small} {big}");
    let saved = bytes(&mut Atlas::new(&options()).unwrap());
    let error = load(&saved, small - 1).err().unwrap();
    assert_eq!(error.status(), Status::InvalidArgument);
    assert!(error.message().contains(&format!("takes {small} bytes")), "{error}");
    load(&saved, small).unwrap();
    // More latents than the file holds take no memory.
    let said = b"\\\"n_latents\\\":6,";
    let at = saved.windows(said.len()).position(|part| part == said).unwrap() + said.len() - 2;
    let mut more = saved;
    more[at] = b'9';
    let error = load(&more, 0).err().unwrap();
    assert_eq!(error.status(), Status::Format, "{error}");
}

#[test]
fn only_atlases_are_loaded() {
    for (bytes, status) in [(&b""[..], Status::Format), (b"something else that is long enough", Status::Format)] {
        let error = load(bytes, 0).err().unwrap();
        assert_eq!(error.status(), status, "{error}");
        assert!(error.message().contains("atlas"), "{error}");
    }
    let nowhere = std::path::Path::new("/nowhere/atlas");
    assert_eq!(Atlas::load(nowhere, 0).err().unwrap().status(), Status::Io);
    let mut atlas = Atlas::new(&options()).unwrap();
    assert_eq!(atlas.save(nowhere).unwrap_err().status(), Status::Io);
}
