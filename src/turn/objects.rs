//! JSON objects only: what reads a struct from an array does not get past this.
//!
//! Serde's derived code reads a struct from a JSON object, and from an array of its fields' values too; an enum with a `tag`
//! likewise. So `["progress","50%"]` would be a frame, and a body that is an array a submission. Every type that is read from
//! outside says `#[serde(remote = "Self")]`, which makes the derived code a plain function of the type, and is named in
//! [`objects_only!`], which puts [`ObjectsOnly`] in front of it. A test here finds the types that forgot.

use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::forward_to_deserialize_any;

/// Implements `Deserialize`, and `Serialize` where `both` is said, for types that say `#[serde(remote = "Self")]`.
macro_rules! objects_only {
    (read $($name:ty),+ $(,)?) => {$(
        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                <$name>::deserialize($crate::turn::objects::ObjectsOnly(from))
            }
        }
    )+};
    (both $($name:ty),+ $(,)?) => {
        $crate::turn::objects::objects_only!(read $($name),+);
        $(
            impl ::serde::Serialize for $name {
                fn serialize<S: ::serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                    <$name>::serialize(self, to)
                }
            }
        )+
    };
}
pub(crate) use objects_only;

/// A deserializer of which only an object can be had.
pub(crate) struct ObjectsOnly<D>(pub D);

/// A visitor to whom only an object can be shown.
struct ObjectVisitor<V>(V);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for ObjectsOnly<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(ObjectVisitor(visitor))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(ObjectVisitor(visitor))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_struct(name, fields, ObjectVisitor(visitor))
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }

    // What the derived code of a struct, or of an enum with a tag, never asks for.
    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for ObjectVisitor<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(map)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use serde::{Deserialize, Serialize};
    use syn::visit::Visit;

    use crate::turn::frame::Frame;
    use crate::turn::terminal::Outcome;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(remote = "Self", deny_unknown_fields)]
    struct Inner {
        a: u32,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(remote = "Self", tag = "type", rename_all = "camelCase")]
    enum Tagged {
        Unit,
        Some(Inner),
        Fields { list: Vec<Inner>, any: serde_json::Value },
    }

    objects_only!(both Inner, Tagged);

    fn read<T: for<'de> Deserialize<'de>>(json: &str) -> Result<T, String> {
        serde_json::from_str(json).map_err(|e| e.to_string())
    }

    #[test]
    fn an_array_is_no_struct_on_any_level() {
        assert_eq!(read(r#"{"a":1}"#), Ok(Inner { a: 1 }));
        assert_eq!(read(r#"{"type":"unit"}"#), Ok(Tagged::Unit));
        assert_eq!(read(r#"{"a":1,"type":"some"}"#), Ok(Tagged::Some(Inner { a: 1 })));
        let fields = r#"{"type":"fields","list":[{"a":1}],"any":[1,[2]]}"#;
        let read_fields = read::<Tagged>(fields).expect("an array is fine where one is expected");
        assert_eq!(serde_json::to_string(&read_fields).expect("JSON"), fields);
        let error = read::<Inner>("[1]").expect_err("an array");
        assert!(error.contains("expected an object"), "{error}");
        for json in [
            r#"["unit"]"#,
            r#"["some",1]"#,
            r#"{"type":"fields","list":[[1]],"any":0}"#,
            r#"["fields",[{"a":1}],0]"#,
            "[]",
            "null",
            r#""unit""#,
        ] {
            assert!(read::<Tagged>(json).is_err(), "{json}");
        }
        assert!(read::<Inner>(r#"{"a":1,"b":2}"#).is_err(), "what the derived code refuses is refused");
    }

    #[test]
    fn frames_and_outcomes_are_objects() {
        for json in [r#"["text","hello"]"#, r#"["progress","50%"]"#, r#"["data","n",[1,2]]"#] {
            assert!(read::<Frame>(json).is_err(), "{json}");
        }
        for json in [r#"["reply"]"#, r#"["error","AgentError","m"]"#, r#"{"type":"error","reason":["AgentError"]}"#] {
            assert!(read::<Outcome>(json).is_err(), "{json}");
        }
    }

    /// Types that are never read from JSON of an outsider: queries of URLs (`a=1&b=2` has no arrays).
    const NO_JSON: [&str; 11] = [
        "ResponseQuery",
        "HistoryQuery",
        "ListQuery",
        "AfterQuery",
        "SessionQuery",
        "OwnerQuery",
        "ConversationsQuery",
        "AgentsQuery",
        "OutputOffset",
        "FramesAfter",
        "PostOffset",
    ];

    struct Forgetful {
        found: Vec<String>,
    }

    impl Forgetful {
        fn look(&mut self, name: &syn::Ident, attributes: &[syn::Attribute], is_enum: bool) {
            let text = |path: &str| {
                let of = attributes.iter().filter(|a| a.path().is_ident(path));
                of.filter_map(|a| a.meta.require_list().ok())
                    .map(|l| l.tokens.to_string())
                    .collect::<Vec<_>>()
                    .join(",")
            };
            let (derive, serde) = (text("derive"), text("serde"));
            let read = derive.split(',').any(|d| d.trim() == "Deserialize" || d.trim().ends_with(":: Deserialize"));
            let tagged = serde.contains("tag =");
            if read && (!is_enum || tagged) && !serde.contains("remote = \"Self\"") && !serde.contains("transparent") {
                self.found.push(name.to_string());
            }
        }
    }

    impl<'ast> Visit<'ast> for Forgetful {
        fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
            // A struct without named fields is a value in a wrapping.
            if matches!(item.fields, syn::Fields::Named(_)) {
                self.look(&item.ident, &item.attrs, false);
            }
        }

        fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
            self.look(&item.ident, &item.attrs, true);
        }
    }

    fn forgetful(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            // The types of the custom resources are held against their schema before they are read.
            if path.is_dir() && path.file_name().is_none_or(|name| name != "crd") {
                forgetful(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let file = syn::parse_file(&fs::read_to_string(&path).expect("readable")).expect("Rust");
                let mut reader = Forgetful { found: Vec::new() };
                reader.visit_file(&file);
                reader.found.retain(|name| !NO_JSON.contains(&name.as_str()));
                found.extend(reader.found.into_iter().map(|name| format!("{name} in {}", path.display())));
            }
        }
    }

    #[test]
    fn every_type_that_is_read_from_outside_is_an_object_alone() {
        let mut found = Vec::new();
        forgetful(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        let advice = "say #[serde(remote = \"Self\")], and name it in turn::objects::objects_only!";
        assert_eq!(found, Vec::<String>::new(), "{advice}");
    }
}
