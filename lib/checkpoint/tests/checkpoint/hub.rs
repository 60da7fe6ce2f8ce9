//! Names of the hub in a cache laid out as `hf download` does it: blobs, links, refs. What is whole opens and says where
//! it is from; what is missing is named, with the command that downloads it.

use crate::tiny::{INDEX, SHARD_1, SHARD_2, Tiny};
use cute_checkpoint::hub::{Found, locate_with};
use cute_checkpoint::{Checkpoint, Error};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const ONE: &str = "1111111111111111111111111111111111111111";
const TWO: &str = "2222222222222222222222222222222222222222";

/// A cache with models of this test.
struct Cache(TempDir);

impl Cache {
    fn new() -> Cache {
        Cache(tempfile::tempdir().unwrap())
    }

    fn repository(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("models--{}", name.replace('/', "--")))
    }

    fn snapshot(&self, name: &str, commit: &str) -> PathBuf {
        self.repository(name).join("snapshots").join(commit)
    }

    /// A snapshot of the tiny model in two shards, each file a link to its blob.
    fn add(&self, name: &str, commit: &str) -> &Cache {
        let written = Tiny { second_shard: vec!["model.layers.1"], ..Tiny::default() }.write();
        let blobs = self.repository(name).join("blobs");
        let snapshot = self.snapshot(name, commit);
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        for entry in fs::read_dir(written.path()).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            fs::copy(written.path().join(&file), blobs.join(format!("blob-{file}"))).unwrap();
            symlink(format!("../../blobs/blob-{file}"), snapshot.join(&file)).unwrap();
        }
        self
    }

    fn point(&self, name: &str, reference: &str, commit: &str) -> &Cache {
        let path = self.repository(name).join("refs").join(reference);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, commit).unwrap();
        self
    }

    fn locate(&self, name: &str) -> Result<Found, Error> {
        let home = self.0.path().as_os_str().to_owned();
        locate_with(Path::new(name), |variable| (variable == "HF_HUB_CACHE").then(|| home.clone()))
    }

    /// What is said of a name; DIR stands for the cache.
    fn said(&self, name: &str) -> String {
        let said = match self.locate(name).and_then(Checkpoint::open_found) {
            Ok(c) => c.origin.map(|o| format!("{} of {}", o.revision, o.repository)).unwrap(),
            Err(e) => e.to_string(),
        };
        said.replace(self.0.path().to_str().unwrap(), "DIR")
    }
}

#[test]
fn a_name_is_the_snapshot_that_its_ref_says() {
    let cache = Cache::new();
    cache.add("org/tiny", ONE).add("org/tiny", TWO).add("tiny", TWO);
    cache.point("org/tiny", "main", TWO).point("org/tiny", "refs/pr/1", ONE).point(
        "tiny",
        "main",
        &format!("{TWO}\n"),
    );
    for (name, repository, commit) in [
        ("org/tiny", "org/tiny", TWO),
        ("org/tiny@main", "org/tiny", TWO),
        ("org/tiny@refs/pr/1", "org/tiny", ONE),
        (&format!("org/tiny@{ONE}"), "org/tiny", ONE),
        ("tiny", "tiny", TWO),
    ] {
        let found = cache.locate(name).unwrap();
        assert_eq!(found.dir, cache.snapshot(repository, commit), "{name}");
        assert_eq!(cache.said(name), format!("{commit} of {repository}"), "{name}");
    }
}

#[test]
fn the_cache_is_where_huggingface_hub_looks_for_it() {
    let cache = Cache::new();
    cache.add("org/tiny", ONE).point("org/tiny", "main", ONE);
    let home = tempfile::tempdir().unwrap();
    let found = |variables: &[(&str, &Path)]| {
        let get =
            |v: &str| variables.iter().find(|(name, _)| *name == v).map(|(_, p)| p.as_os_str().to_owned());
        locate_with(Path::new("org/tiny"), get).map(|f| f.dir.exists())
    };
    let (dir, nothing) = (cache.0.path(), Path::new(""));
    assert!(found(&[("HF_HUB_CACHE", dir), ("HF_HOME", home.path())]).unwrap());
    assert!(found(&[("HUGGINGFACE_HUB_CACHE", dir), ("HF_HOME", home.path())]).unwrap());
    assert!(found(&[("HF_HUB_CACHE", nothing), ("HUGGINGFACE_HUB_CACHE", dir)]).unwrap());
    assert!(matches!(found(&[("HF_HUB_CACHE", home.path())]), Err(Error::NotCached { .. })));
    symlink(dir, home.path().join("hub")).unwrap();
    assert!(found(&[("HF_HOME", home.path()), ("HOME", nothing)]).unwrap());
    assert!(found(&[("HF_HOME", Path::new("~")), ("HOME", home.path())]).unwrap());
    fs::create_dir_all(home.path().join(".cache/huggingface")).unwrap();
    symlink(dir, home.path().join(".cache/huggingface/hub")).unwrap();
    assert!(found(&[("HOME", home.path())]).unwrap());
    assert!(found(&[("XDG_CACHE_HOME", &home.path().join(".cache")), ("HOME", nothing)]).unwrap());
    let e = found(&[("HF_HOME", nothing)]).unwrap_err().to_string();
    assert!(e.contains("none of HF_HUB_CACHE, HF_HOME and HOME says where the cache is"), "{e}");
}

#[test]
fn what_the_cache_does_not_have_is_said_with_what_it_has() {
    let cache = Cache::new();
    let check = |name: &str, want: &str| assert_eq!(cache.said(name), want);
    check(
        "org/tiny",
        "org/tiny: no such directory, and the cache DIR (HF_HUB_CACHE) has no such model; `hf download org/tiny` downloads it",
    );
    fs::create_dir_all(cache.repository("org/tiny")).unwrap();
    check(
        "org/tiny",
        "org/tiny: no such directory, and the cache DIR (HF_HUB_CACHE) has the model, and no branch main of it; it has no \
         snapshot at all; `hf download org/tiny` downloads it",
    );
    cache.add("org/tiny", ONE).add("org/tiny", TWO);
    check(
        "org/tiny",
        &format!(
            "org/tiny: no such directory, and the cache DIR (HF_HUB_CACHE) has the model, and no branch main of it; it has \
             org/tiny@{ONE}, org/tiny@{TWO}; `hf download org/tiny` downloads it"
        ),
    );
    cache.point("org/tiny", "v1", ONE).point("org/tiny", "main", &"3".repeat(40));
    check(
        "org/tiny",
        &format!(
            "org/tiny: no such directory, and the cache DIR (HF_HUB_CACHE) says that main is commit {} and has no snapshot of \
             it; it has org/tiny@v1; `hf download org/tiny` downloads it",
            "3".repeat(40)
        ),
    );
    check(
        "org/tiny@v2",
        "org/tiny@v2: no such directory, and the cache DIR (HF_HUB_CACHE) has the model, and no revision v2 of it; it has \
         org/tiny@v1; `hf download org/tiny --revision v2` downloads it",
    );
    check(
        "Org/Tiny",
        "Org/Tiny: no such directory, and the cache DIR (HF_HUB_CACHE) has no such model; it has org/tiny; \
         `hf download Org/Tiny` downloads it",
    );
    for bad in ["", "../../..", "a/b"] {
        cache.point("org/tiny", "main", bad);
        check("org/tiny", &format!("DIR/models--org--tiny/refs/main: it says {bad:?}: expected a commit"));
    }
}

#[test]
fn what_cannot_be_a_name_is_refused_as_a_path_and_as_a_name() {
    let cache = Cache::new();
    let expected = "expected a directory, or ORG/NAME or ORG/NAME@REVISION in the Hugging Face cache";
    for (name, why) in [
        ("a/b/c", "it has 3 parts"),
        ("../x", "a part of it begins or ends with . or -, as \"..\" does"),
        ("a//b", "it has 3 parts"),
        ("org/", "a part of it is empty"),
        ("org/a b", "' ' cannot stand in it"),
        ("org/a--b", "\"a--b\" has -- or .. in it"),
        ("org/tiny@", "nothing stands behind the @"),
        ("org/tiny@../main", "revision \"../main\" is no branch, tag or commit"),
        ("org/tiny@a b", "' ' cannot stand in revision \"a b\""),
        ("org/tiny@$(x)", "'$' cannot stand in revision \"$(x)\""),
        ("org/tiny@--force", "revision \"--force\" is no branch, tag or commit"),
    ] {
        assert_eq!(
            cache.said(name),
            format!("{name}: no such directory, and no name of the hub: {why}: {expected}")
        );
    }
    let long = format!("org/{}", "x".repeat(93));
    assert!(cache.said(&long).contains("it has 97 characters and may have 96"), "{}", cache.said(&long));
    for path in ["/nowhere/at/all", "./org/tiny", "~/models/tiny"] {
        assert_eq!(cache.said(path), format!("{path}: no such directory"));
    }
}

#[test]
fn a_directory_that_is_there_wins() {
    let found = Cache::new().locate("src").unwrap();
    assert_eq!(found, Found { dir: PathBuf::from("src"), origin: None });
}

#[test]
fn a_snapshot_given_as_a_path_says_where_it_is_from() {
    let cache = Cache::new();
    cache.add("org/tiny", ONE);
    let origin = Checkpoint::open(&cache.snapshot("org/tiny", ONE).join(".")).unwrap().origin.unwrap();
    assert_eq!((origin.repository.as_str(), origin.revision.as_str()), ("org/tiny", ONE));
}

#[test]
fn a_download_that_was_interrupted_is_refused_with_the_file_and_the_command() {
    let dir = format!("DIR/models--org--tiny/snapshots/{ONE}");
    let index = "tensor model.layers.1.input_layernorm.weight is said to be in it";
    let more = ", and one blob is incomplete: its download goes on or was interrupted";
    let command = "; `hf download org/tiny` completes the snapshot";
    let check = |damage: &dyn Fn(&Path, &Path), want: String| {
        let cache = Cache::new();
        cache.add("org/tiny", ONE).point("org/tiny", "main", ONE);
        damage(&cache.snapshot("org/tiny", ONE), &cache.repository("org/tiny"));
        assert_eq!(cache.said("org/tiny"), want);
    };
    let remove = |path: PathBuf| fs::remove_file(path).unwrap();
    let incomplete = |repository: &Path| fs::write(repository.join("blobs/abc.incomplete"), "").unwrap();
    check(
        &|_, r| remove(r.join("blobs").join(format!("blob-{SHARD_2}"))),
        format!("{dir}: no {SHARD_2}: the link is there and its blob blob-{SHARD_2} is not{command}"),
    );
    check(&|s, _| remove(s.join(SHARD_2)), format!("{dir}: no {SHARD_2}: {index}{command}"));
    check(
        &|s, r| {
            remove(s.join(SHARD_2));
            fs::write(s.join("tokenizer.json"), "{}").unwrap();
            fs::write(s.join("tokenizer_config.json"), "{}").unwrap();
            incomplete(r);
        },
        format!("{dir}: no {SHARD_2}: {index}{more}{command}"),
    );
    check(
        &|_, r| incomplete(r),
        format!("{dir}: no tokenizer.json: it is not in the snapshot{more}{command}"),
    );
    check(
        &|s, _| {
            remove(s.join(INDEX));
            remove(s.join(SHARD_1));
        },
        format!("{dir}: no {SHARD_1}: {SHARD_2} is one of 2 shards{command}"),
    );
    check(
        &|s, _| [INDEX, SHARD_1, SHARD_2].into_iter().for_each(|f| remove(s.join(f))),
        format!("{dir}: no model.safetensors: the weights are read from safetensors files{command}"),
    );
    check(
        &|s, _| remove(s.join("config.json")),
        format!("{dir}: no config.json: it is not in the snapshot{command}"),
    );
    let tree = |r: &Path, files: serde_json::Value| {
        fs::create_dir(r.join("trees")).unwrap();
        let text = json!({"format_version": 1, "files": files}).to_string();
        fs::write(r.join("trees").join(format!("{ONE}.json")), text).unwrap();
    };
    check(
        &|_, r| {
            tree(
                r,
                json!({"README.md": {}, "config.json": {}, "generation_config.json": {"size": 3, "blob_id": "x"}}),
            )
        },
        format!("{dir}: no generation_config.json: the repository's list of files has it{command}"),
    );
    let whole = format!("{ONE} of org/tiny");
    check(&|_, r| tree(r, json!({"README.md": {}, "model.bin": {}, "config.json": {}})), whole.clone());
    // with the list at hand, an incomplete blob is that of a file this build does not read
    check(
        &|_, r| {
            tree(r, json!({"config.json": {}}));
            incomplete(r);
        },
        whole.clone(),
    );
    check(&|s, _| symlink("../../blobs/gone", s.join("README.md")).unwrap(), whole);
}

#[test]
fn the_command_asks_for_the_revision_that_was_asked_for() {
    let cache = Cache::new();
    cache.add("org/tiny", ONE).point("org/tiny", "main", ONE).point("org/tiny", "v1", ONE);
    fs::remove_file(cache.snapshot("org/tiny", ONE).join(SHARD_1)).unwrap();
    for (name, revision) in [("org/tiny", ""), ("org/tiny@v1", " --revision v1")] {
        let want = format!("; `hf download org/tiny{revision}` completes the snapshot");
        assert!(cache.said(name).ends_with(&want), "{}", cache.said(name));
    }
    // a path names the commit alone
    let e = Checkpoint::open(&cache.snapshot("org/tiny", ONE)).unwrap_err().to_string();
    assert!(e.ends_with(&format!("; `hf download org/tiny --revision {ONE}` completes the snapshot")), "{e}");
}

#[test]
fn a_snapshot_is_whole_without_the_files_of_a_skipped_tower() {
    let cache = Cache::new();
    cache.add("org/tiny", ONE).point("org/tiny", "main", ONE);
    crate::tiny::edit_index(&cache.snapshot("org/tiny", ONE), |map| {
        map.insert("mtp.fc.weight".into(), json!("model_mtp.safetensors"));
    });
    assert_eq!(cache.said("org/tiny"), format!("{ONE} of org/tiny"));
}

#[test]
fn variables_and_the_home_in_the_path_of_the_cache_are_what_huggingface_hub_makes_of_them() {
    let cache = Cache::new();
    cache.add("org/tiny", ONE).point("org/tiny", "main", ONE);
    let dir = cache.0.path().to_str().unwrap();
    let (parent, name) = dir.rsplit_once('/').unwrap();
    let locate = |variable: &str, path: &str| {
        locate_with(Path::new("org/tiny"), |asked| match asked {
            "HOME" | "PARENT" => Some(parent.into()),
            "NAME" => Some(name.into()),
            asked => (asked == variable).then(|| path.into()),
        })
    };
    for path in ["$PARENT/$NAME", "${PARENT}/${NAME}", "~/$NAME", dir, "$HOME/${NAME}/."] {
        assert_eq!(locate("HF_HUB_CACHE", path).unwrap().origin.unwrap().revision, ONE, "{path}");
    }
    symlink(dir, cache.0.path().join("hub")).unwrap();
    assert!(locate("HF_HOME", "~/${NAME}").is_ok());
    // What is not set, or is no name, stays.
    for path in ["/$NOT_SET/$", "/${NOT_SET}/${", "/~/$é/a$-b"] {
        let e = locate("HF_HUB_CACHE", path).unwrap_err().to_string();
        assert!(e.contains(&format!("the cache {path} (HF_HUB_CACHE) is not there")), "{e}");
    }
}
