//! The kernel programs as a separate image, in bpfman's format:
//! one file, and labels that name its programs and maps.
use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail};
use aya_obj::{Map, Object, ProgramSection, generated::bpf_map_type};

use crate::{
    build_ebpf,
    image::{Architecture, Image, VERSION},
};

const NAME: &str = "docker.io/library/ws-guard-bytecode";

/// Make it; return the argument of `cosign sign`.
pub fn make(folder: &Path) -> Result<String> {
    let object = build_ebpf::committed();
    let labels = labels(&fs::read(&object).with_context(|| object.display().to_string())?)?;
    // One object serves all little-endian machines; an image has to name one of them.
    let architecture = Architecture::Amd64;
    let inside = "ws-guard.bpf.o";
    let (runs, capable) = (false, false);
    let image = Image { name: NAME, file: &object, inside, architecture, runs, capable, labels };
    let digest = image.make(&folder.join(format!("ws-guard-{VERSION}-bytecode.tar")))?;
    Ok(format!("{NAME}@{digest}"))
}

fn labels(object: &[u8]) -> Result<Vec<(&'static str, String)>> {
    let object = Object::parse(object).context("the committed object")?;
    let mut programs = BTreeMap::new();
    for (name, program) in &object.programs {
        let kind = match program.section {
            ProgramSection::Xdp { .. } => "xdp",
            ProgramSection::SchedClassifier => "tc",
            ref other => bail!("bpfman has no name for {name}, {other:?}"),
        };
        programs.insert(name, kind);
    }
    // Maps without a definition are the object's sections of constants and variables.
    let defined = object.maps.iter().filter(|(_, map)| matches!(map, Map::Btf(_)));
    let maps =
        defined.map(|(name, map)| Ok((name, kind(map)?))).collect::<Result<BTreeMap<_, _>>>()?;
    Ok(vec![
        ("io.ebpf.programs", serde_json::to_string(&programs)?),
        ("io.ebpf.maps", serde_json::to_string(&maps)?),
    ])
}

fn kind(map: &Map) -> Result<String> {
    let kind = bpf_map_type::try_from(map.map_type()).ok().context("an unknown type of map")?;
    let name = format!("{kind:?}").to_lowercase().replace("percpu", "per_cpu");
    Ok(name.trim_start_matches("bpf_map_type_").to_owned())
}

#[cfg(test)]
mod tests {
    use ws_guard_common::maps::program;

    use super::*;

    #[test]
    fn labels_name_programs_and_maps() {
        let object = fs::read(build_ebpf::committed()).expect("the committed object");
        let labels: BTreeMap<_, _> = labels(&object).expect("labels").into_iter().collect();
        let of = |label: &str| -> BTreeMap<String, String> {
            serde_json::from_str(&labels[label]).expect("JSON")
        };
        let (programs, maps) = (of("io.ebpf.programs"), of("io.ebpf.maps"));
        assert_eq!(programs[program::XDP_INGRESS], "xdp", "{programs:?}");
        assert!(programs.values().filter(|kind| *kind == "tc").count() >= 2, "{programs:?}");
        assert_eq!((&*maps["FLOWS"], &*maps["PENDING"]), ("hash", "lru_hash"), "{maps:?}");
        assert_eq!(
            (&*maps["COUNTERS"], &*maps["RULES"]),
            ("per_cpu_array", "lpm_trie"),
            "{maps:?}"
        );
    }
}
