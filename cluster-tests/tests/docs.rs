//! The documentation says what is there: names in it exist in the source, its examples are good, its links lead somewhere, and what
//! the source offers an operator is in it.

use anyhow::{Context, ensure};
use evergate_cluster_tests::{
    Result,
    member::binary,
    pki::{Key, Pki},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_owned)
        .unwrap_or_default()
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| path.to_owned())
}

/// All files below a directory of the repository with this extension, as paths from the root.
fn files(below: &str, extension: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut directories = vec![root().join(below)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).with_context(|| below.to_owned())? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path.strip_prefix(root())?.display().to_string());
            }
        }
    }
    found.sort();
    ensure!(!found.is_empty(), "no {extension} files below {below}");
    Ok(found)
}

fn documents() -> Result<Vec<String>> {
    Ok([vec!["README.md".to_owned()], files("docs", "md")?].concat())
}

/// Fails with all complaints at once.
fn verdict(complaints: &[String]) -> Result<()> {
    ensure!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    Ok(())
}

/// The cells of a row of a table, if the line is one, but not of the line below the head.
fn cells(line: &str) -> Option<Vec<&str>> {
    let row = line.strip_prefix("| ")?.trim_end().strip_suffix('|')?;
    (!row.starts_with("---")).then(|| row.split('|').map(str::trim).collect())
}

/// The rows of tables whose head begins with these columns, with their line numbers.
fn rows<'a>(text: &'a str, head: &[&str]) -> Vec<(usize, Vec<&'a str>)> {
    let mut inside = false;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        match cells(line) {
            Some(row) if row.starts_with(head) => inside = true,
            Some(row) if inside => found.push((number, row)),
            Some(_) => {}
            None if line.starts_with("| ---") => {}
            None => inside = false,
        }
    }
    found
}

/// What stands in backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The files that names come from, each read once.
#[derive(Default)]
struct Source(BTreeMap<String, Option<String>>);

impl Source {
    fn get(&mut self, path: &str) -> Option<&str> {
        let text = self
            .0
            .entry(path.to_owned())
            .or_insert_with(|| read(path).ok());
        text.as_deref()
    }

    /// Resolves what a cell names: `path` `name`, `name`, or `path::name`, where a name belongs to the path before it. Yields a complaint
    /// for each that `exists` does not find.
    fn check(&mut self, cell: &str, base: &str, exists: fn(&str, &str) -> bool) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut current = String::new();
        for word in quoted(cell) {
            let (path, name) = match word.split_once(".rs::") {
                Some((stem, name)) => (Some(format!("{stem}.rs")), Some(name)),
                None if word.ends_with(".rs") => (Some(word.to_owned()), None),
                None => (None, Some(word)),
            };
            if let Some(path) = path {
                let whole = ["node/", "cluster-tests/", "proto/"]
                    .iter()
                    .any(|p| path.starts_with(p));
                current = if whole || base.is_empty() {
                    path
                } else {
                    format!("{base}/{path}")
                };
            }
            let Some(text) = self.get(&current) else {
                complaints.push(format!("{word:?}: there is no file {current:?}"));
                continue;
            };
            if let Some(name) = name
                && !exists(text, name)
            {
                complaints.push(format!("{current} has no {name:?}"));
            }
        }
        complaints
    }
}

/// Whether the text declares an item of this name.
fn declares(text: &str, name: &str) -> bool {
    const KINDS: [&str; 8] = [
        "fn", "struct", "enum", "trait", "const", "static", "type", "mod",
    ];
    KINDS.iter().any(|kind| declares_as(text, kind, name))
        // Constants of IANA registries are declared by a macro.
        || text.lines().any(|l| l.trim().starts_with(&format!("{name} = ")))
}

fn declares_as(text: &str, kind: &str, name: &str) -> bool {
    let wanted = format!("{kind} {name}");
    text.match_indices(&wanted).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + wanted.len()..].chars().next();
        let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !word(before) && !word(after)
    })
}

/// Whether the text has a test of this name: a function with an attribute that says so, or a row of a macro that makes such functions.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_test =
        |line: &&str| line.starts_with("#[") && (line.contains("test]") || line.contains("test("));
    let function = |at: usize| {
        lines[..at]
            .iter()
            .rev()
            .take_while(|l| l.starts_with("#[") || l.starts_with("//"))
            .any(is_test)
    };
    let made_by_macro = text.contains("fn $name()") && text.contains("#[test]");
    (0..lines.len()).any(|at| {
        (declares_as(lines[at], "fn", name) && function(at))
            || (made_by_macro && lines[at].starts_with(&format!("{name}: ")))
    })
}

const COVERAGE: [&str; 5] = ["section", "requirement", "where", "test", "left out"];

#[test]
fn coverage_tables_name_what_exists() -> Result<()> {
    let mut source = Source::default();
    let mut complaints = Vec::new();
    let mut count = 0;
    for file in files("docs/rfc", "md")? {
        let text = read(&file)?;
        let base = text
            .lines()
            .find_map(|l| l.strip_prefix("Paths are relative to `")?.split('`').next())
            .unwrap_or_default();
        for (line, row) in rows(&text, &COVERAGE) {
            count += 1;
            let mut complain = |what: String| complaints.push(format!("{file}:{line}: {what}"));
            let [_, requirement, code, tests, left_out] = row[..] else {
                complain(format!("{} cells instead of five", row.len()));
                continue;
            };
            if requirement.is_empty() || (code.is_empty() && left_out.is_empty()) {
                complain("the row says nothing".to_owned());
            }
            if !code.is_empty() && tests.is_empty() && !left_out.contains("no test") {
                complain("code without a test, and the row does not say so".to_owned());
            }
            let found = [
                source.check(code, base, declares),
                source.check(tests, base, has_test),
            ];
            found.concat().into_iter().for_each(complain);
        }
    }
    ensure!(count > 100, "only {count} rows were found");
    verdict(&complaints)
}

/// Fenced blocks: the words behind the fence, and the content.
fn blocks(text: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(kind) = line.strip_prefix("```") {
            let content: Vec<&str> = lines.by_ref().take_while(|l| *l != "```").collect();
            found.push((kind, content.join("\n") + "\n"));
        }
    }
    found
}

/// Runs `evergate check` on a document in a directory that has the secrets which it names; success, and what was said.
fn check(toml: &str) -> Result<(bool, String)> {
    let directory = tempfile::tempdir()?;
    for line in toml.lines() {
        if let Some(value) = line.trim().strip_prefix("secret_file = \"") {
            let name = value.split('"').next().unwrap_or_default();
            fs::write(directory.path().join(name), "a key of an example\n")?;
        }
    }
    if toml.contains("gw.pem") {
        let pki = Pki::new("Company", Key::P256)?;
        let own = pki.issue("gw.example", Key::P256)?;
        for (from, to) in [
            (own.chain, "gw.pem"),
            (own.key, "gw.key"),
            (own.root, "company-ca.pem"),
        ] {
            fs::copy(from, directory.path().join(to))?;
        }
    }
    fs::write(directory.path().join("evergate.toml"), toml)?;
    let output = Command::new(fs::canonicalize(binary()?)?)
        .args(["check", "evergate.toml"])
        .current_dir(directory.path())
        .output()?;
    let said = String::from_utf8(output.stdout)?;
    Ok((output.status.success(), said.trim_end().to_owned()))
}

#[test]
fn configuration_examples_are_good() -> Result<()> {
    let mut complaints = Vec::new();
    let mut count = 0;
    for file in documents()? {
        for (kind, toml) in blocks(&read(&file)?) {
            if kind == "toml" {
                count += 1;
                let (good, said) = check(&toml)?;
                if !good || said.contains("warning") {
                    complaints.push(format!("{file}: {said}\n{toml}"));
                }
            }
        }
    }
    ensure!(count >= 5, "only {count} examples were found");
    verdict(&complaints)
}

#[test]
fn wrong_examples_are_refused_as_they_say() -> Result<()> {
    let text = read("docs/configuration.md")?;
    let blocks = blocks(&text);
    let mut complaints = Vec::new();
    let mut count = 0;
    for pair in blocks.windows(2) {
        if let [("toml wrong", toml), (kind, expected)] = pair {
            count += 1;
            let (good, said) = check(toml)?;
            if *kind != "text" || good || said != expected.trim_end() {
                complaints.push(format!("it says:\n{said}\ninstead of:\n{expected}"));
            }
        }
    }
    ensure!(count >= 3, "only {count} wrong examples were found");
    verdict(&complaints)
}

/// What a heading is called in a link.
fn anchor(heading: &str) -> String {
    let kept = heading
        .trim_start_matches('#')
        .trim()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| {
        if c == ' ' {
            '-'
        } else {
            c.to_ascii_lowercase()
        }
    })
    .collect()
}

#[test]
fn links_lead_somewhere() -> Result<()> {
    let mut complaints = Vec::new();
    let mut count = 0;
    for file in documents()? {
        let text = read(&file)?;
        let directory = root().join(&file).parent().map(Path::to_owned);
        let directory = directory.context("a file is in a directory")?;
        for link in text.split("](").skip(1).filter_map(|r| r.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            count += 1;
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => root().join(&file),
                path => directory.join(path),
            };
            if !target.exists() {
                complaints.push(format!("{file}: {link} does not exist"));
            } else if !fragment.is_empty() {
                let text = fs::read_to_string(&target)?;
                let mut headings = text.lines().filter(|l| l.starts_with('#'));
                if !headings.any(|h| anchor(h) == fragment) {
                    complaints.push(format!("{file}: {link} names no heading"));
                }
            }
        }
    }
    ensure!(count > 20, "only {count} links were found");
    verdict(&complaints)
}

/// The tables of the configuration with their keys, as the source declares them: from the first name in backticks of a structure's comment,
/// and its fields.
fn declared_keys() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let source = read("node/server/src/config/document.rs")?;
    let mut tables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let (mut comment, mut table, mut renamed) = (None, None, None);
    for line in source.lines() {
        let word = line.trim();
        if let Some(text) = line.strip_prefix("/// ") {
            comment = quoted(text).next().map(str::to_owned);
        } else if line.contains("struct ") && line.ends_with('{') {
            table = comment.take();
        } else if line == "}" {
            table = None;
        } else if let Some(name) = word.strip_prefix("#[serde(rename = \"") {
            renamed = name.split('"').next().map(str::to_owned);
        } else if let (Some(table), Some(field)) = (&table, word.strip_prefix("pub("))
            && let Some((name, _)) = field.split_once(") ").and_then(|(_, f)| f.split_once(':'))
        {
            let name = renamed.take().unwrap_or_else(|| name.to_owned());
            tables.entry(table.clone()).or_default().insert(name);
        }
    }
    Ok(tables)
}

#[test]
fn every_configuration_key_is_documented() -> Result<()> {
    let declared = declared_keys()?;
    let text = read("docs/configuration.md")?;
    let mut documented: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for section in text.split("\n###").skip(1) {
        let (heading, body) = section.split_once('\n').unwrap_or((section, ""));
        let Some(table) = quoted(heading).next().filter(|t| t.starts_with('[')) else {
            continue;
        };
        let keys = rows(body, &["key", "type", "default", "meaning"]);
        let keys = keys
            .iter()
            .flat_map(|(_, row)| quoted(row[0]).map(str::to_owned));
        documented.insert(table.to_owned(), keys.collect());
    }
    let count: usize = declared.values().map(BTreeSet::len).sum();
    ensure!(count > 40, "only {count} keys were found in the source");
    for (table, keys) in &declared {
        let listed = documented.get(table);
        ensure!(
            listed == Some(keys),
            "{table}: the source has {keys:?}, the documentation {listed:?}"
        );
    }
    ensure!(
        documented.len() == declared.len(),
        "documented: {:?}, in the source: {:?}",
        documented.keys(),
        declared.keys()
    );
    Ok(())
}

/// Every name that follows `before` in the sources below these directories, up to the next quote.
fn names_after(before: &str, directories: &[&str]) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for directory in directories {
        for file in files(directory, "rs")? {
            let text = read(&file)?;
            let found = text.split(before).skip(1);
            names.extend(found.filter_map(|r| r.split('"').next().map(str::to_owned)));
        }
    }
    Ok(names)
}

/// The names in backticks in the first column of tables with this head.
fn listed(text: &str, head: &[&str]) -> BTreeSet<String> {
    rows(text, head)
        .iter()
        .flat_map(|(_, row)| quoted(row[0]).map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

#[test]
fn every_log_event_is_listed() -> Result<()> {
    let text = read("docs/operations.md")?;
    let events = names_after(
        "event = \"",
        &["node/server/src", "node/cluster/src", "node/dataplane/src"],
    )?;
    ensure!(events.len() > 30, "only {events:?} were found");
    let listed = listed(&text, &["event", "level"]);
    let difference: Vec<_> = events.symmetric_difference(&listed).collect();
    ensure!(
        difference.is_empty(),
        "in the source or in operations.md, but not in both: {difference:?}"
    );
    Ok(())
}

/// The labels in a macro that declares reasons.
fn labels(path: &str, macro_call: &str) -> Result<BTreeSet<String>> {
    let text = read(path)?;
    let (_, body) = text.split_once(macro_call).context("the macro call")?;
    let (body, _) = body
        .split_once("\n}")
        .context("the end of the macro call")?;
    let labels = body.split(" = \"").skip(1);
    Ok(labels
        .filter_map(|r| r.split('"').next().map(str::to_owned))
        .collect())
}

#[test]
fn every_reason_for_a_drop_is_listed() -> Result<()> {
    let text = read("docs/operations.md")?;
    let packets = labels("node/dataplane/src/contract.rs", "\ndrop_reasons! {")?;
    let messages = labels("node/server/src/counters.rs", "\nike_drops! {")?;
    let all: BTreeSet<String> = packets.union(&messages).cloned().collect();
    ensure!(all.len() > 20, "only {all:?} were found");
    let listed = listed(&text, &["reason", "what"]);
    let difference: Vec<_> = all.symmetric_difference(&listed).collect();
    ensure!(
        difference.is_empty(),
        "in the source or in operations.md, but not in both: {difference:?}"
    );
    Ok(())
}

/// The value of a constant as the table writes it, if it is one that we can read.
fn value(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("const {name}: "))?;
    let (_, expression) = rest.split_once(" = ")?;
    let expression = expression.split(';').next()?.trim();
    let inside = |of: &str| expression.strip_prefix(of)?.strip_suffix(')');
    if let Some(seconds) = inside("Duration::from_secs(") {
        return Some(format!("{seconds} s"));
    }
    if let Some(millis) = inside("Duration::from_millis(") {
        return Some(format!("{millis} ms"));
    }
    let number = |text: &str| text.trim().replace('_', "").parse::<u64>().ok();
    let shifted = |text: &str| match text.split_once(" << ") {
        Some((base, by)) => number(base)?.checked_shl(u32::try_from(number(by)?).ok()?),
        None => number(text),
    };
    let value = match expression
        .strip_prefix('(')
        .and_then(|e| e.split_once(") - "))
    {
        Some((all, less)) => shifted(all)?.checked_sub(number(less)?)?,
        None => shifted(expression)?,
    };
    Some(value.to_string())
}

#[test]
fn limits_have_the_values_of_the_source() -> Result<()> {
    let text = read("docs/operations.md")?;
    let mut complaints = Vec::new();
    let mut named = BTreeSet::new();
    for (line, row) in rows(&text, &["limit", "value", "constant", "why"]) {
        let [_, documented, constant, why] = row[..] else {
            complaints.push(format!("line {line}: not four cells"));
            continue;
        };
        let mut words = quoted(constant);
        let (path, name) = words.next().zip(words.next()).context("path and name")?;
        named.insert((path.to_owned(), name.to_owned()));
        let actual = read(path).ok().and_then(|text| value(&text, name));
        if actual.as_deref() != Some(documented) || why.is_empty() {
            complaints.push(format!(
                "line {line}: {path} has {name} = {actual:?}, not {documented:?}"
            ));
        }
    }
    // Files that are about limits are listed whole.
    for path in ["node/ike/src/wire/limits.rs", "node/state/src/limits.rs"] {
        for line in read(path)?.lines() {
            if let Some((name, _)) = line
                .strip_prefix("pub const ")
                .and_then(|l| l.split_once(':'))
                && !named.contains(&(path.to_owned(), name.to_owned()))
            {
                complaints.push(format!("{path}: {name} is not in the table"));
            }
        }
    }
    ensure!(named.len() > 30, "only {named:?} were found");
    verdict(&complaints)
}
