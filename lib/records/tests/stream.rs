//! The stream format, seen from outside: what a line may look like and what becomes of it.

use cute_records::*;
use std::io::Cursor;
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<Vec<u8>>>>);

impl std::io::Write for Sink {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().push(buf.to_vec());
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn read(text: impl AsRef<[u8]>) -> Vec<Result<Line, ReadError>> {
    Reader::new("in", Cursor::new(text.as_ref().to_vec())).max_line(1000).collect()
}

fn sample_stream() -> String {
    let sink = Sink::default();
    let mut w = Writer::new(sink.clone());
    w.write(&Run { tool: "cute-generate".into(), ..Run::default() }.into()).unwrap();
    w.write(&Completion { id: "0".into(), ..Completion::default() }.into()).unwrap();
    w.end("cute-generate", true).unwrap();
    let writes = sink.0.lock().unwrap();
    assert_eq!(writes.len(), 3, "one write a record");
    String::from_utf8(writes.concat()).unwrap()
}

fn ledger(text: &str) -> Ledger {
    let mut ledger = Ledger::default();
    for line in read(text) {
        ledger.note(&line.unwrap().parse().unwrap());
    }
    ledger
}

#[test]
fn a_position_beyond_what_readers_of_json_keep_is_a_bad_line() {
    let line = |index: u64| {
        let record = Record::from(Completion { index, ..Completion::default() });
        read(serde_json::to_string(&record).unwrap() + "\n").remove(0).unwrap().parse()
    };
    assert!(line(num::MOST).is_ok());
    let error = line(num::MOST + 1).unwrap_err().to_string();
    assert!(error.contains("9007199254740992 counts nothing: expected at most 9007199254740991"), "{error}");
}

#[test]
fn every_record_type_survives_a_round_trip_and_has_a_schema() {
    for kind in TYPES {
        let schema = schema::schema_of(kind).unwrap();
        assert_eq!(schema["properties"]["type"]["const"], *kind);
    }
    let record = Record::from(Finding {
        check: "c".into(),
        severity: Severity::Error,
        message: "m".into(),
        ordinal: Some(3),
        layer: None,
        at: None,
        data: [("x".to_string(), serde_json::json!(0.1))].into(),
    });
    let text = serde_json::to_string(&record).unwrap();
    assert!(text.starts_with(r#"{"type":"finding","v":1,"check":"c""#), "{text}");
    let lines = read(text + "\n");
    let Parsed::Known(back) = lines[0].as_ref().unwrap().parse().unwrap() else { panic!() };
    assert_eq!(*back, record);
}

#[test]
fn a_bad_line_names_its_place_and_spares_its_neighbours() {
    let long = "x".repeat(5000);
    let text = format!(
        "{{\"type\":\"end\",\"v\":1,\"tool\":\"t\",\"complete\":true,\"counts\":{{}}}}\nnot json\n\n{long}\n{{\"type\":\"later\",\"v\":9,\"a\":1}}\r\n{{\"type\":\"end\"}}\n{{\"type\":\"end\",\"v\":2}}\n{{\"a\":1}}\n"
    );
    let lines = read(text.as_bytes());
    let message = |i: usize| match &lines[i] {
        Ok(line) => line.parse().map(|p| format!("{p:?}")).unwrap_or_else(|e| e.to_string()),
        Err(e) => e.to_string(),
    };
    assert!(message(0).contains("Known"));
    assert!(message(1).starts_with("in:2: column 2: "), "{}", message(1));
    assert!(message(2).starts_with("in:4: line longer than 1000 bytes"), "{}", message(2));
    assert_eq!(message(3), "Unknown(\"later\")");
    assert!(message(4).contains("no \"v\""), "{}", message(4));
    assert!(message(5).contains("record version 2"), "{}", message(5));
    assert!(message(6).contains("no \"type\""), "{}", message(6));
    assert_eq!(lines.len(), 7);
}

#[test]
fn invalid_utf8_is_an_error_and_the_next_line_is_read() {
    let lines = read([&b"{\"a\":\"\xff\"}\n"[..], &b"{\"type\":\"x\"}\n"[..]].concat());
    assert!(lines[0].as_ref().unwrap_err().to_string().contains("in:1: invalid UTF-8 at byte 6"));
    assert!(lines[1].is_ok());
}

#[test]
fn a_line_without_newline_was_cut_off() {
    let lines = read("{\"type\":\"end\",\"v\":1,\"tool\":\"t\",\"complete\":true,\"counts\":{}}");
    assert!(lines[0].as_ref().unwrap().parse().unwrap_err().to_string().contains("cut off"));
}

#[test]
fn a_stream_cut_within_a_character_was_cut_off() {
    let lines = read(&"{\"type\":\"x\",\"text\":\"é".as_bytes()[..21]);
    let line = lines[0].as_ref().unwrap();
    assert!(!line.terminated && line.text.ends_with('"'), "{line:?}");
    assert!(line.parse().unwrap_err().to_string().contains("cut off"));
}

#[test]
fn unknown_fields_and_types_are_forwarded_byte_for_byte() {
    let text = "{\"v\":1,  \"type\":\"end\",\"tool\":\"t\",\"complete\":true,\"counts\":{},\"new\":1.50}\n{\"type\":\"later\",\"x\":1e2}\n";
    let sink = Sink::default();
    let mut w = Writer::new(sink.clone());
    for line in read(text) {
        let line = line.unwrap();
        w.forward(&line, &line.parse().unwrap()).unwrap();
    }
    assert_eq!(String::from_utf8(sink.0.lock().unwrap().concat()).unwrap(), text);
}

#[test]
fn a_whole_stream_is_no_trouble_and_each_way_to_lose_a_part_is() {
    let whole = sample_stream();
    assert_eq!(ledger(&whole).trouble(), Vec::<String>::new());
    assert_eq!(ledger(&(whole.clone() + &whole)).trouble(), Vec::<String>::new());
    let lines: Vec<&str> = whole.lines().collect();
    let cut = format!("{}\n{}\n", lines[0], lines[1]);
    assert!(ledger(&cut).trouble()[0].contains("cut off"));
    let lost = format!("{}\n{}\n", lines[0], lines[2]);
    assert!(ledger(&lost).trouble()[0].contains("lost or altered"));
    let absurd = whole.replace("\"completion\":1", "\"completion\":18446744073709551615");
    assert!(ledger(&absurd).trouble()[0].contains("counts 18446744073709551616 records, 2 arrived"));
    let orphan = format!("{}\n", lines[2]);
    assert!(ledger(&orphan).trouble()[0].contains("without their `run`"));
    let nested = format!("{}\n{whole}", r#"{"type":"run","v":1,"tool":"cute-audit","version":""}"#);
    assert!(
        ledger(&nested).trouble()[0].contains("cute-audit"),
        "the inner stream is whole, the outer is not"
    );
}

#[test]
fn appending_repairs_a_torn_tail_and_keeps_a_whole_one() {
    use std::io::Write;
    let dir = std::env::temp_dir().join(format!("cute-records-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("j.jsonl");
    for (before, cut, after) in [
        ("{\"a\":1}\n{\"b\"", 4, "{\"a\":1}\n{\"n\":0}\n"),
        ("{\"a\":1}\n{\"b\":2}", 0, "{\"a\":1}\n{\"b\":2}\n{\"n\":0}\n"),
        ("{\"a\":1}\n", 0, "{\"a\":1}\n{\"n\":0}\n"),
        ("", 0, "{\"n\":0}\n"),
        ("12", 2, "{\"n\":0}\n"),
    ] {
        std::fs::write(&path, before).unwrap();
        let (mut file, n) = write::append(&path).unwrap();
        file.write_all(b"{\"n\":0}\n").unwrap();
        assert_eq!((n, std::fs::read_to_string(&path).unwrap().as_str()), (cut, after), "{before:?}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_batched_writer_hands_over_whole_records_together() {
    let sink = Sink::default();
    let mut w = Writer::new(sink.clone()).batched(1 << 20);
    for i in 0..10 {
        w.write(&Completion { id: i.to_string(), ..Completion::default() }.into()).unwrap();
    }
    assert!(sink.0.lock().unwrap().is_empty());
    w.flush().unwrap();
    w.write(&Completion::default().into()).unwrap();
    w.end("t", true).unwrap();
    let writes = sink.0.lock().unwrap();
    assert_eq!(writes.iter().map(|b| b.iter().filter(|c| **c == b'\n').count()).collect::<Vec<_>>(), [10, 2]);
    assert!(writes.iter().all(|b| b.ends_with(b"\n")));
}

#[test]
fn control_bytes_of_bad_input_never_reach_the_terminal() {
    let line = "no json \u{1b}[31mred\u{7}\u{9b}\n";
    let e = cute_records::Reader::new("x", line.as_bytes()).next().unwrap().unwrap().parse().unwrap_err();
    let said = e.to_string();
    assert!(said.contains("no json \\u{1b}[31mred\\u{7}\\u{9b}"), "{said}");
    assert!(!said.chars().any(char::is_control), "{said:?}");
}
