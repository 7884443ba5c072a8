//! The little language of `kv txn`, the same as etcdctl's: compares such as `value("k") = "v"`, and
//! operations such as `put k "two words"`.

use super::kv::{pair_json, prefix_end, range_json};
use super::output;
use bytes::Bytes;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::response_op::Response;
use proto::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse};
use serde_json::{Value, json};
use std::fmt::Write;

/// From the values of `--if`, `--then` and `--else`.
pub(super) fn from_lines(compares: &[String], success: &[String], failure: &[String]) -> Result<TxnRequest, String> {
    Ok(TxnRequest {
        compare: compares.iter().map(|line| compare(line)).collect::<Result<_, _>>()?,
        success: success.iter().map(|line| operation(line)).collect::<Result<_, _>>()?,
        failure: failure.iter().map(|line| operation(line)).collect::<Result<_, _>>()?,
    })
}

/// From three blocks of lines, each ended by an empty line.
pub(super) fn from_blocks(text: &str) -> Result<TxnRequest, String> {
    let mut blocks: [Vec<String>; 3] = Default::default();
    let mut block = 0;
    for line in text.lines().map(str::trim) {
        match (line.is_empty(), blocks.get_mut(block)) {
            (true, _) => block += 1,
            (false, Some(lines)) => lines.push(line.to_owned()),
            (false, None) => return Err(format!("`{line}` stands behind the third block (compares, then, else)")),
        }
    }
    let [compares, success, failure] = blocks;
    from_lines(&compares, &success, &failure)
}

fn compare(line: &str) -> Result<Compare, String> {
    let example = "write for instance value(\"k\") = \"v\" or mod(\"k\") > 0";
    let bad = || format!("`{line}` is no compare; {example}");
    let (target, rest) = line.split_once('(').ok_or_else(bad)?;
    let (key, rest) = quoted(rest.trim_start()).ok_or_else(bad)?;
    let rest = rest.trim_start().strip_prefix(')').ok_or_else(bad)?.trim_start();
    let operators = [
        ("!=", CompareResult::NotEqual),
        ("=", CompareResult::Equal),
        ("<", CompareResult::Less),
        (">", CompareResult::Greater),
    ];
    let found = operators.iter().find_map(|(sign, result)| Some((*result, rest.strip_prefix(sign)?.trim())));
    let (result, operand) = found.ok_or_else(bad)?;
    let (operand, behind) = quoted(operand).ok_or_else(bad)?;
    if !behind.trim().is_empty() {
        return Err(bad());
    }
    let number = || operand.parse::<i64>().map_err(|_| format!("`{line}`: `{operand}` is no whole number"));
    let (target, union) = match target.trim() {
        "value" | "val" => (CompareTarget::Value, TargetUnion::Value(operand.into())),
        "version" | "ver" => (CompareTarget::Version, TargetUnion::Version(number()?)),
        "create" | "c" => (CompareTarget::Create, TargetUnion::CreateRevision(number()?)),
        "mod" | "m" => (CompareTarget::Mod, TargetUnion::ModRevision(number()?)),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number()?)),
        other => return Err(format!("`{line}`: `{other}` is none of value, version, create, mod, lease")),
    };
    let (result, target) = (result.into(), target.into());
    Ok(Compare { result, target, key: key.into(), range_end: Bytes::new(), target_union: Some(union) })
}

/// A word at the start of `text`, in quotes or up to a space, bracket or operator; and what is behind.
fn quoted(text: &str) -> Option<(String, &str)> {
    let Some(inner) = text.strip_prefix('"') else {
        let end = text.find([' ', '(', ')', '=', '<', '>', '!']).unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let mut word = String::new();
    let mut characters = inner.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((word, &inner[at + 1..])),
            '\\' => word.push(characters.next()?.1),
            c => word.push(c),
        }
    }
    None
}

fn operation(line: &str) -> Result<RequestOp, String> {
    let words = words(line).ok_or_else(|| format!("`{line}`: a quote is not closed"))?;
    let (flags, words): (Vec<&str>, Vec<&str>) = words.iter().map(|(word, quoted)| (word.as_str(), *quoted)).fold(
        Default::default(),
        |mut lists, (word, quoted)| {
            let flag = !quoted && word.starts_with("--");
            if flag {
                lists.0.push(word)
            } else {
                lists.1.push(word)
            };
            lists
        },
    );
    let prefix = match flags[..] {
        [] => false,
        ["--prefix"] => true,
        _ => return Err(format!("`{line}`: the only flag is --prefix")),
    };
    let range = |key: &str, end: Option<&str>| match (end, prefix) {
        (Some(_), true) => Err(format!("`{line}`: give an end or --prefix, not both")),
        (Some(end), false) => Ok((Bytes::from(key.to_owned()), Bytes::from(end.to_owned()))),
        (None, true) => Ok((Bytes::from(key.to_owned()), prefix_end(key.as_bytes()))),
        (None, false) => Ok((Bytes::from(key.to_owned()), Bytes::new())),
    };
    let request = match words[..] {
        ["put", key, value] if !prefix => {
            let (key, value) = (key.to_owned().into(), value.to_owned().into());
            Request::RequestPut(PutRequest { key, value, ..Default::default() })
        }
        ["get", key] | ["get", key, _] => {
            let (key, range_end) = range(key, words.get(2).copied())?;
            Request::RequestRange(RangeRequest { key, range_end, ..Default::default() })
        }
        ["del", key] | ["del", key, _] => {
            let (key, range_end) = range(key, words.get(2).copied())?;
            Request::RequestDeleteRange(DeleteRangeRequest { key, range_end, ..Default::default() })
        }
        _ => return Err(format!("`{line}` is no operation; write put KEY VALUE, get KEY [END] or del KEY [END]")),
    };
    Ok(RequestOp { request: Some(request) })
}

/// Splits a line at its spaces, but not inside quotes; says of each word whether it was quoted.
fn words(line: &str) -> Option<Vec<(String, bool)>> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, behind) = if rest.starts_with('"') {
            let (word, behind) = quoted(rest)?;
            ((word, true), behind)
        } else {
            let end = rest.find(' ').unwrap_or(rest.len());
            ((rest[..end].to_owned(), false), &rest[end..])
        };
        words.push(word);
        rest = behind.trim_start();
    }
    Some(words)
}

/// The answer for programs.
pub(super) fn json(answer: &TxnResponse) -> Value {
    let response = |response: &Response| match response {
        Response::ResponseRange(range) => json!({ "get": range_json(range) }),
        Response::ResponsePut(put) => json!({ "put": { "prev": put.prev_kv.as_ref().map(pair_json) } }),
        Response::ResponseDeleteRange(delete) => json!({ "del": { "deleted": delete.deleted } }),
        Response::ResponseTxn(nested) => json!({ "txn": json(nested) }),
    };
    json!({
        "revision": answer.header.as_ref().map_or(0, |header| header.revision),
        "succeeded": answer.succeeded,
        "responses": answer.responses.iter().map(|op| op.response.as_ref().map(response)).collect::<Vec<_>>(),
    })
}

/// The answer for people: whether the compares held, then a line for each operation.
pub(super) fn shown(answer: &TxnResponse) -> String {
    let mut text = format!("{}\n", if answer.succeeded { "SUCCESS" } else { "FAILURE" });
    for response in answer.responses.iter().filter_map(|op| op.response.as_ref()) {
        match response {
            Response::ResponseRange(range) if range.kvs.is_empty() => text.push_str("get: nothing\n"),
            Response::ResponseRange(range) => range.kvs.iter().for_each(|pair| {
                let (key, value) = (output::shown(&pair.key), output::shown(&pair.value));
                writeln!(text, "{key} = {value}").expect("writing to a string cannot fail");
            }),
            Response::ResponsePut(_) => text.push_str("put: OK\n"),
            Response::ResponseDeleteRange(delete) => {
                writeln!(text, "deleted: {}", delete.deleted).expect("writing to a string cannot fail");
            }
            Response::ResponseTxn(nested) => text.push_str(&shown(nested)),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(line: &str) -> (i32, i32, Vec<u8>, TargetUnion) {
        let compare = compare(line).unwrap_or_else(|error| panic!("{error}"));
        (compare.target, compare.result, compare.key.to_vec(), compare.target_union.expect("an operand"))
    }

    #[test]
    fn compares_of_every_kind() {
        let (value, version) = (CompareTarget::Value as i32, CompareTarget::Version as i32);
        let (equal, greater) = (CompareResult::Equal as i32, CompareResult::Greater as i32);
        let union = TargetUnion::Value(Bytes::from_static(b"v = 1"));
        assert_eq!(compared(r#"value("k") = "v = 1""#), (value, equal, b"k".to_vec(), union));
        assert_eq!(compared("version(k)>0"), (version, greater, b"k".to_vec(), TargetUnion::Version(0)));
        let (target, result, key, union) = compared(r#" mod("a\"b") != "7" "#.trim());
        assert_eq!((target, result), (CompareTarget::Mod as i32, CompareResult::NotEqual as i32));
        assert_eq!((key, union), (b"a\"b".to_vec(), TargetUnion::ModRevision(7)));
        assert_eq!(compared("create(k) < 9").3, TargetUnion::CreateRevision(9));
        assert_eq!(compared("lease(k) = 3").3, TargetUnion::Lease(3));
    }

    #[test]
    fn bad_lines_are_quoted_back() {
        for line in
            ["", "value", "value(k)", "value(k) ~ 1", "value(k = 1", "size(k) = 1", "mod(k) = x", "mod(k) = 1 2"]
        {
            let error = compare(line).expect_err(line);
            assert!(error.contains(line), "{error}");
        }
        for line in ["", "put k", "put k v w", "get", "drop k", "get k --suffix", "get a b --prefix", "put \"k v"] {
            let error = operation(line).expect_err(line);
            assert!(error.contains(line), "{error}");
        }
    }

    #[test]
    fn operations_take_quotes_ends_and_prefixes() {
        let request = |line: &str| operation(line).expect(line).request.expect("a request");
        let Request::RequestPut(put) = request(r#"put "a key" "--two words""#) else { panic!("no put") };
        assert_eq!((&put.key[..], &put.value[..]), (&b"a key"[..], &b"--two words"[..]));
        let Request::RequestRange(get) = request("get a c") else { panic!("no get") };
        assert_eq!((&get.key[..], &get.range_end[..]), (&b"a"[..], &b"c"[..]));
        let Request::RequestDeleteRange(del) = request("del users/ --prefix") else { panic!("no del") };
        assert_eq!((&del.key[..], &del.range_end[..]), (&b"users/"[..], &b"users0"[..]));
    }

    #[test]
    fn three_blocks_are_compares_then_else() {
        let text = "create(\"lock\") = 0\n\nput lock me\nget lock\n\nget lock\n\n";
        let request = from_blocks(text).expect("it is well-formed");
        assert_eq!((request.compare.len(), request.success.len(), request.failure.len()), (1, 2, 1));
        let request = from_blocks("\n\nget lock\n").expect("blocks may be empty");
        assert_eq!((request.compare.len(), request.success.len(), request.failure.len()), (0, 0, 1));
        assert!(from_blocks("a\n\nb\n\nc\n\nd\n").is_err());
    }

    #[test]
    fn a_prefix_ends_where_its_last_byte_can_rise() {
        assert_eq!(&prefix_end(b"ab")[..], b"ac");
        assert_eq!(&prefix_end(b"a\xff")[..], b"b");
        assert_eq!(&prefix_end(b"\xff\xff")[..], b"\0");
        assert_eq!(&prefix_end(b"")[..], b"\0");
    }
}
