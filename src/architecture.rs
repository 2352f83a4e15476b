//! The plan of the house, and the test that holds the code against it.
//!
//! Every file and folder of `src/` is a *room*. Rooms stand on floors: a room may use those of lower floors, not those of
//! its own floor and none above. So there is no circle of rooms, and whoever changes a room knows what may break: what
//! stands above it. Within a room no files use each other in a circle; only a room's `mod.rs`, its front door, may name
//! the files behind it while they name it.
//!
//! Some crates may be named in certain rooms only ([`RESERVED`]), and some rooms are pure: they name nothing that
//! reaches outside ([`PURE`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// The floors, from the ground up.
const FLOORS: [&[&str]; 10] = [
    // What a turn is: plain values and decisions.
    &["turn"],
    // The ground: things that any program needs, and that know nothing of turns but their names.
    &["backoff", "every", "ids", "lines", "metrics", "utf8"],
    &["event_stream", "leadership", "private", "problem", "tls"],
    &["child", "crd", "edge", "egress", "telemetry", "wire"],
    &["secrets", "store", "worker"],
    &["admin", "dispatch", "guard", "heartbeat", "sweep"],
    &["agents", "fleet", "post", "stream", "worker_port"],
    &["local", "submit"],
    &["cli", "gateway", "operator"],
    &["roles"],
];

/// Crates that only these rooms (or files of a room) may name.
const RESERVED: [(&str, &[&str]); 3] =
    [("sqlx", &["store"]), ("kube", &["crd", "operator", "roles"]), ("k8s_openapi", &["crd", "operator"])];

/// Rooms, or files of a room, that are pure: these crates and modules, which reach outside, are not named there.
const PURE: (&[&str], &[&str]) = (
    &["turn", "fleet::plan"],
    &["tokio", "sqlx", "kube", "rand", "reqwest", "std::fs", "std::net", "std::process", "std::time", "std::env"],
);

/// Files that may call `tokio::spawn` itself, and why a task of theirs may end unseen. All others use `every::supervised`, so
/// that a loop which panics ends its process.
const SPAWNERS: [(&str, &str); 21] = [
    ("cli::chat::follow", "its end is awaited"),
    ("dispatch::follow", "the following of one turn; the log in the store makes it good"),
    ("edge::bodies", "its end is awaited, or it discards one body within a time"),
    ("edge::http2", "one stream of one connection, whose end its client sees"),
    ("every", "the supervised spawn itself"),
    ("fleet::process::launch", "copies one worker's output and ends with it"),
    ("fleet::process::worker", "waits for one process, whose death the lease tells as well"),
    ("gateway::notices", "one look at one worker, which the next notice or beat repeats"),
    ("guard::places", "its end is awaited"),
    ("operator::pods::runtime", "one stop of one pod, which the next pass repeats"),
    ("roles::signals", "listens to signals as long as the process lives"),
    ("store::batch", "its end is awaited"),
    ("stream::registry", "its end is awaited"),
    ("submit", "one check of one turn, which another gateway takes over when its hold runs out"),
    ("worker::conformance::fake_gateway", "its end is awaited"),
    ("worker::exec", "ended with the turn"),
    ("worker::farewell", "its end is awaited"),
    ("worker::job", "its end is awaited"),
    ("worker::openai::server", "its end is awaited"),
    ("worker_port::stream", "one mark of one worker, which its lease makes good"),
    ("worker_port::words", "its end is awaited"),
];

/// Type names that stand for different things in different rooms on purpose.
const NAMED_TWICE: [&str; 0] = [];

/// An arrow from one file to another, and the name that it is for.
type Arrows = BTreeMap<String, BTreeSet<(String, String)>>;

/// The code as this test sees it, test code left out.
#[derive(Default)]
struct House {
    /// Modules, `a::b`, and their files.
    files: BTreeMap<String, PathBuf>,
    /// The absolute paths that each module names: of the crate, and from outside.
    inside: BTreeMap<String, BTreeSet<String>>,
    outside: BTreeMap<String, BTreeSet<String>>,
    /// What each front door re-exports, by module and name, and the module that has it.
    exports: BTreeMap<(String, String), String>,
    /// Type names and the modules that declare them.
    types: BTreeMap<String, Vec<String>>,
}

impl House {
    fn read(source: impl Fn(&Path) -> Option<String>) -> Self {
        let mut house = House::default();
        house.module("", Path::new("lib.rs"), &source);
        house
    }

    fn module(&mut self, module: &str, file: &Path, source: &dyn Fn(&Path) -> Option<String>) {
        let text = source(file).unwrap_or_else(|| panic!("{} cannot be read", file.display()));
        let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        self.files.insert(module.into(), file.into());
        let mut reader = Reader { module: module.into(), house: self, children: Vec::new() };
        reader.visit_file(&parsed);
        for child in reader.children {
            let folder = file.parent().unwrap_or(Path::new(""));
            let options = [folder.join(format!("{child}.rs")), folder.join(&child).join("mod.rs")];
            let found = options.iter().find(|path| source(path).is_some());
            let found = found.unwrap_or_else(|| panic!("{}: no file for `mod {child}`", file.display()));
            self.module(&join(module, &child), found, source);
        }
    }

    /// The module that has what a path names: the longest prefix that is a module, behind its re-exports.
    fn owner(&self, path: &str) -> Option<String> {
        let mut prefix = path;
        loop {
            if self.files.contains_key(prefix) {
                let name = path[prefix.len()..].trim_start_matches("::").split("::").next().unwrap_or_default();
                let exported = self.exports.get(&(prefix.to_owned(), name.to_owned()));
                return Some(match exported {
                    Some(target) => self.owner(target).unwrap_or_else(|| prefix.to_owned()),
                    None => prefix.to_owned(),
                });
            }
            prefix = prefix.rsplit_once("::")?.0;
        }
    }

    fn arrows(&self) -> Arrows {
        let mut arrows = Arrows::new();
        for (module, paths) in &self.inside {
            for path in paths {
                let Some(owner) = self.owner(path).filter(|owner| owner != module && !owner.is_empty()) else {
                    continue;
                };
                arrows.entry(module.clone()).or_default().insert((owner, path.clone()));
            }
        }
        arrows
    }

    fn file(&self, module: &str) -> String {
        self.files.get(module).map_or_else(|| module.to_owned(), |path| format!("src/{}", path.display()))
    }

    /// What breaks the plan, a line each.
    fn breaches(&self, floors: &[&[&str]]) -> Vec<String> {
        let floor = |room: &str| floors.iter().position(|rooms| rooms.contains(&room));
        let mut breaches = Vec::new();
        for room in self.files.keys().filter(|m| !m.is_empty()).map(|m| room(m)).collect::<BTreeSet<_>>() {
            if floor(room).is_none() {
                breaches.push(format!("src/{room} stands on no floor: give it one in src/architecture.rs"));
            }
        }
        let arrows = self.arrows();
        for (from, targets) in &arrows {
            for (to, name) in targets {
                let (here, there) = (room(from), room(to));
                if here != there && floor(here) <= floor(there) && !from.is_empty() {
                    breaches.push(format!("{} uses {name}: {there} does not stand below {here}", self.file(from)));
                }
            }
        }
        breaches.extend(self.circles(&arrows));
        breaches.extend(self.outsiders());
        breaches.extend(self.spawners());
        breaches
    }

    /// Circles of files; what a front door names behind it does not count.
    fn circles(&self, arrows: &Arrows) -> Vec<String> {
        let behind = |from: &str, to: &str| to.strip_prefix(from).is_some_and(|rest| rest.starts_with("::"));
        let next = |from: &str| -> Vec<&(String, String)> {
            arrows.get(from).into_iter().flatten().filter(|(to, _)| !behind(from, to)).collect()
        };
        let reaches = |from: &str, goal: &str| {
            let (mut seen, mut todo) = (BTreeSet::new(), vec![from.to_owned()]);
            while let Some(at) = todo.pop() {
                for (to, _) in next(&at) {
                    if to == goal {
                        return true;
                    }
                    if seen.insert(to.clone()) {
                        todo.push(to.clone());
                    }
                }
            }
            false
        };
        let mut found = Vec::new();
        for from in self.files.keys().filter(|m| !m.is_empty()) {
            for (to, name) in next(from) {
                if reaches(to, from) {
                    found.push(format!(
                        "{} uses {name}, and {} leads back to it: a circle",
                        self.file(from),
                        self.file(to)
                    ));
                }
            }
        }
        found
    }

    /// Crates and modules of others that are named where they may not be.
    fn outsiders(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (module, paths) in &self.outside {
            let within = |place: &&str| module == place || module.starts_with(&format!("{place}::"));
            for path in paths {
                let begins = |name: &str| path == name || path.starts_with(&format!("{name}::"));
                let reserved = RESERVED.iter().filter(|(name, rooms)| begins(name) && !rooms.iter().any(within));
                let impure = PURE.1.iter().filter(|name| begins(name) && PURE.0.iter().any(within));
                for name in reserved.map(|(name, _)| name).chain(impure) {
                    found.push(format!("{} uses {path}: {name} is not for this room", self.file(module)));
                }
            }
        }
        found
    }

    /// Files that spawn tasks which nobody would miss.
    fn spawners(&self) -> Vec<String> {
        let spawns = |paths: &BTreeSet<String>| paths.contains("tokio::spawn") || paths.contains("tokio::task::spawn");
        let outside = self
            .outside
            .iter()
            .filter(|(module, paths)| spawns(paths) && !SPAWNERS.iter().any(|(file, _)| file == module));
        outside
            .map(|(module, _)| format!("{} calls tokio::spawn: see SPAWNERS in src/architecture.rs", self.file(module)))
            .collect()
    }

    fn names_twice(&self) -> Vec<String> {
        let twice =
            self.types.iter().filter(|(name, places)| places.len() > 1 && !NAMED_TWICE.contains(&name.as_str()));
        twice
            .map(|(name, places)| {
                let places: Vec<String> = places.iter().map(|m| self.file(m)).collect();
                format!("{name} is declared in {}", places.join(", "))
            })
            .collect()
    }
}

fn join(module: &str, name: &str) -> String {
    if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") }
}

fn room(module: &str) -> &str {
    module.split("::").next().unwrap_or(module)
}

/// Reads one file.
struct Reader<'a> {
    module: String,
    house: &'a mut House,
    children: Vec<String>,
}

impl Reader<'_> {
    /// The absolute path of a path in this module; `Err`: it leads outside.
    fn resolve(&self, segments: &[String]) -> Result<String, String> {
        let mut base: Vec<&str> = self.module.split("::").filter(|s| !s.is_empty()).collect();
        let mut rest = segments;
        match segments.first().map(String::as_str) {
            Some("crate") => {
                base.clear();
                rest = &segments[1..];
            }
            Some("self") => rest = &segments[1..],
            Some("super") => {
                while rest.first().is_some_and(|s| s == "super") {
                    base.pop();
                    rest = &rest[1..];
                }
            }
            Some(name) if self.children.iter().any(|c| c == name) => {}
            _ => return Err(segments.join("::")),
        }
        base.extend(rest.iter().map(String::as_str));
        Ok(base.join("::"))
    }

    fn note(&mut self, segments: &[String]) -> Option<String> {
        let module = self.module.clone();
        match self.resolve(segments) {
            Ok(path) => {
                self.house.inside.entry(module).or_default().insert(path.clone());
                Some(path)
            }
            Err(path) => {
                self.house.outside.entry(module).or_default().insert(path);
                None
            }
        }
    }

    fn use_tree(&mut self, tree: &syn::UseTree, before: &mut Vec<String>, public: bool) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.use_tree(&path.tree, before, public);
                before.pop();
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.use_tree(tree, before, public)),
            syn::UseTree::Name(_) | syn::UseTree::Rename(_) | syn::UseTree::Glob(_) => {
                let (name, shown) = match tree {
                    syn::UseTree::Name(name) => (Some(name.ident.to_string()), name.ident.to_string()),
                    syn::UseTree::Rename(name) => (Some(name.ident.to_string()), name.rename.to_string()),
                    _ => (None, String::new()),
                };
                let mut path = before.clone();
                path.extend(name.filter(|name| name != "self"));
                if let (Some(path), true) = (self.note(&path), public) {
                    self.house.exports.insert((self.module.clone(), shown), path);
                }
            }
        }
    }

    fn declare(&mut self, name: &syn::Ident) {
        self.house.types.entry(name.to_string()).or_default().push(self.module.clone());
    }

    /// Paths in a macro's tokens: only those from the crate, or from the runtime, are sure to be paths.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) if path.is_empty() || colons == 2 => path.push(ident.to_string()),
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => {
                    colons = if colons == 2 { 1 } else { colons + 1 };
                    continue;
                }
                TokenTree::Ident(ident) => {
                    self.end_path(&mut path);
                    path.push(ident.to_string());
                }
                TokenTree::Group(group) => {
                    self.end_path(&mut path);
                    self.tokens(group.stream());
                }
                _ => self.end_path(&mut path),
            }
            colons = 0;
        }
        self.end_path(&mut path);
    }

    fn end_path(&mut self, path: &mut Vec<String>) {
        if path.first().is_some_and(|first| first == "crate" || first == "tokio") && path.len() > 1 {
            self.note(path);
        }
        path.clear();
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| {
        a.path().is_ident("cfg") && a.meta.require_list().is_ok_and(|list| list.tokens.to_string().contains("test"))
    })
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_file(&mut self, file: &'ast syn::File) {
        for item in &file.items {
            if let syn::Item::Mod(item) = item
                && item.content.is_none()
                && !is_test(&item.attrs)
            {
                self.children.push(item.ident.to_string());
            }
        }
        visit::visit_file(self, file);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_test(&item.attrs) {
            self.use_tree(&item.tree, &mut Vec::new(), !matches!(item.vis, syn::Visibility::Inherited));
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        if segments.len() > 1 {
            self.note(&segments);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.tokens(item.tokens.clone());
        visit::visit_macro(self, item);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        if !is_test(&item.attrs) {
            self.declare(&item.ident);
            visit::visit_item_struct(self, item);
        }
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.declare(&item.ident);
        visit::visit_item_enum(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.declare(&item.ident);
        visit::visit_item_trait(self, item);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.declare(&item.ident);
        visit::visit_item_type(self, item);
    }
}

fn real() -> House {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    House::read(|path| std::fs::read_to_string(source.join(path)).ok())
}

#[test]
fn every_arrow_leads_down_and_no_files_use_each_other_in_a_circle() {
    let breaches = real().breaches(&FLOORS);
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
}

#[test]
fn a_type_name_is_declared_once() {
    let twice = real().names_twice();
    assert!(twice.is_empty(), "{} names:\n{}", twice.len(), twice.join("\n"));
}

/// A small house with this in one of its files.
fn small(file: &str, text: &str) -> Vec<String> {
    let files = [
        ("lib.rs", "pub mod low; pub mod high; #[cfg(test)] mod tests;"),
        ("low.rs", "pub struct Ground;"),
        ("high/mod.rs", "mod one; mod two; pub use two::Two; pub struct Front; fn opens() { two::shut(); }"),
        ("high/one.rs", "use super::Front; use crate::low::Ground;"),
        ("high/two.rs", "pub struct Two; use super::Front;"),
    ];
    let house = House::read(|path| {
        let path = path.to_str()?;
        let (_, own) = files.iter().find(|(name, _)| *name == path)?;
        Some(if path == file { format!("{own} {text}") } else { (*own).to_owned() })
    });
    house.breaches(&[&["low"], &["high"]]).into_iter().chain(house.names_twice()).collect()
}

#[test]
fn a_breach_is_named_with_its_file_and_its_name() {
    assert_eq!(small("low.rs", ""), Vec::<String>::new(), "the small house is sound");
    for (file, text, expected) in [
        ("low.rs", "use crate::high::Front;", "src/low.rs uses high::Front: high does not stand below low"),
        ("low.rs", "fn f() { crate::high::open() }", "src/low.rs uses high::open: high does not stand below low"),
        ("low.rs", "fn f() { vec![crate::high::OPEN]; }", "src/low.rs uses high::OPEN: high does not stand below low"),
        ("low.rs", "use sqlx::Row;", "src/low.rs uses sqlx::Row: sqlx is not for this room"),
        (
            "low.rs",
            "fn f() { tokio::spawn(g()); }",
            "src/low.rs calls tokio::spawn: see SPAWNERS in src/architecture.rs",
        ),
        (
            "low.rs",
            "fn f() { a! { tokio::spawn(g()); } }",
            "src/low.rs calls tokio::spawn: see SPAWNERS in src/architecture.rs",
        ),
        ("low.rs", "use tokio::spawn;", "src/low.rs calls tokio::spawn: see SPAWNERS in src/architecture.rs"),
        ("low.rs", "struct Front;", "Front is declared in src/low.rs, src/high/mod.rs"),
    ] {
        assert_eq!(small(file, text), [expected], "{text}");
    }
    let circle = [
        "src/high/one.rs uses high::Two, and src/high/two.rs leads back to it: a circle",
        "src/high/two.rs uses high::one::One, and src/high/one.rs leads back to it: a circle",
    ];
    let both = |path: &str| match path {
        "high/one.rs" => Some("pub struct One; use super::Two;"),
        "high/two.rs" => Some("pub struct Two; use super::one::One;"),
        "high/mod.rs" => Some("mod one; mod two; pub use two::Two;"),
        "lib.rs" => Some("mod high;"),
        _ => None,
    };
    let house = House::read(|path| both(path.to_str()?).map(str::to_owned));
    assert_eq!(house.breaches(&[&["high"]]), circle);
}

#[test]
fn test_code_may_use_what_it_likes() {
    assert_eq!(small("low.rs", "#[cfg(test)] mod tests { use crate::high::Front; }"), Vec::<String>::new());
}

/// What stands in backticks in a text, within a line.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// Whether a file declares this function or type.
fn declares(file: &str, name: &str) -> bool {
    ["fn", "struct", "enum", "trait", "type"].iter().any(|kind| {
        let declared = format!("{kind} {name}");
        let ends = |at: usize| !file[at + declared.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_');
        file.match_indices(&declared).any(|(at, _)| ends(at))
    })
}

/// In the documents, `a/b.rs` is a file below `src/`, and `a/b.rs::name` is a function or a type in it.
#[test]
fn documents_name_what_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    for document in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = std::fs::read_to_string(root.join(document)).expect("the document");
        for token in quoted(&text) {
            let (file, name) = token.split_once("::").unwrap_or((token, ""));
            let file = file.strip_prefix("src/").unwrap_or(file);
            if !file.ends_with(".rs") || file == "mod.rs" {
                continue;
            }
            match std::fs::read_to_string(root.join("src").join(file)) {
                Ok(code) if name.is_empty() || declares(&code, name) => {}
                _ => missing.push(format!("{document} names {token}")),
            }
        }
    }
    assert!(missing.is_empty(), "{} names that do not exist:\n{}", missing.len(), missing.join("\n"));
}

/// What turns are routed to is a worker group. A deployment is a thing of Kubernetes, and its kind is written Deployment.
#[test]
fn deployment_is_a_word_of_kubernetes_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut todo: Vec<PathBuf> =
        ["src", "migrations", "crds", "docs", "examples"].map(|folder| root.join(folder)).into();
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).expect("a folder of the tree");
            todo.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if !path.ends_with("src/architecture.rs")
            && let Ok(text) = std::fs::read_to_string(&path)
        {
            let lines = text.lines().enumerate().filter(|(_, line)| line.contains("deployment"));
            found.extend(lines.map(|(at, line)| format!("{}:{}: {}", path.display(), at + 1, line.trim())));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
