//! docs/PATTERNS.md says what the tables say. `BLESS=1 cargo test -p cute-evidence --test logs_document` rewrites it.

use cute_evidence::logs;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/PATTERNS.md");
const MARK: &str = "<!-- from the tables: do not edit below -->\n";

#[test]
fn the_document_says_what_the_tables_say() {
    let text = std::fs::read_to_string(FILE).unwrap();
    let (head, tables) = text.split_once(MARK).unwrap_or_else(|| panic!("{FILE} has lost its mark {MARK:?}"));
    let expect = format!("\n{}", logs::markdown());
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(FILE, format!("{head}{MARK}{expect}")).unwrap();
    } else {
        assert!(
            tables == expect,
            "{FILE} is not what the tables say: BLESS=1 cargo test -p cute-evidence --test logs_document"
        );
    }
}

#[test]
fn the_document_explains_every_type_a_template_may_use() {
    let text = std::fs::read_to_string(FILE).unwrap();
    let types = logs::packs().iter().flat_map(|p| p.patterns).flat_map(|p| p.template.split('{').skip(1));
    for ty in types
        .filter_map(|t| t.split_once('}')?.0.split_once(':'))
        .map(|(_, ty)| ty)
        .filter(|t| !t.contains('|'))
    {
        assert!(text.contains(&format!(":{ty}}}`")), "{ty}");
    }
}
