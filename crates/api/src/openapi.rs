//! The description of the API, `OpenAPI` 3.1: built from the table of routes, with the schemas of
//! the types that the handlers read and write.

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use nodestats_wire::v1::{GapEntry, Top};
use nodestats_wire::{Problem, routes};

/// One method of one path.
pub(crate) struct Operation {
    method: &'static str,
    id: String,
    summary: String,
    parameters: fn(&mut SchemaGenerator) -> Value,
    body: Option<Value>,
    body_schema: Option<fn(&mut SchemaGenerator) -> Value>,
    success: Vec<(u16, Option<Answers>)>,
    errors: Vec<u16>,
}

type SchemaOf = fn(&mut SchemaGenerator) -> Value;

/// What a good answer holds.
pub(crate) struct Answers {
    media: &'static str,
    schemas: Vec<SchemaOf>,
    history: bool,
    /// What stands in the entries of a history, where that is something else.
    entry: Option<SchemaOf>,
    /// Another shape, which has no history.
    other: Option<SchemaOf>,
    /// Or an object of these, one for each step.
    steps: Option<SchemaOf>,
}

fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

impl Answers {
    fn plain(media: &'static str) -> Self {
        Self {
            media,
            schemas: Vec::new(),
            history: false,
            entry: None,
            other: None,
            steps: None,
        }
    }

    pub(crate) fn html() -> Self {
        Self::plain("text/html")
    }

    pub(crate) fn text() -> Self {
        Self::plain("text/plain")
    }

    pub(crate) fn any_json() -> Self {
        Self::plain("application/json")
    }

    pub(crate) fn json<T: JsonSchema>() -> Self {
        Self {
            schemas: vec![schema_of::<T>],
            ..Self::any_json()
        }
    }

    pub(crate) fn either<A: JsonSchema, B: JsonSchema>() -> Self {
        Self {
            schemas: vec![schema_of::<A>, schema_of::<B>],
            ..Self::any_json()
        }
    }

    /// One of three shapes, as the query says.
    pub(crate) fn one_of_three<A: JsonSchema, B: JsonSchema, C: JsonSchema>() -> Self {
        let mut answers = Self::either::<A, B>();
        answers.schemas.push(schema_of::<C>);
        answers
    }

    /// `T` about one moment, or an object of them keyed by time.
    pub(crate) fn or_history<T: JsonSchema>() -> Self {
        Self::json::<T>().and_history()
    }

    pub(crate) fn and_history(mut self) -> Self {
        self.history = true;
        self
    }

    /// Or an object of other ones keyed by time.
    pub(crate) fn and_history_of<T: JsonSchema>(mut self) -> Self {
        self.entry = Some(schema_of::<T>);
        self.and_history()
    }

    /// Or what used most, also step by step.
    pub(crate) fn or_ranking(mut self) -> Self {
        self.other = Some(schema_of::<Top>);
        self.or_steps::<Top>()
    }

    /// Or one for each step of a span.
    pub(crate) fn or_steps<T: JsonSchema>(mut self) -> Self {
        self.steps = Some(schema_of::<T>);
        self
    }

    fn content(&self, generator: &mut SchemaGenerator) -> Value {
        let each: Vec<Value> = self
            .schemas
            .iter()
            .map(|schema| schema(generator))
            .collect();
        let mut all = each.clone();
        if self.history {
            let one = match (self.entry, &*each) {
                (Some(entry), _) => entry(generator),
                (None, [one]) => one.clone(),
                (None, _) => json!({ "oneOf": each }),
            };
            let gap = schema_of::<GapEntry>(generator);
            all.push(json!({
                "type": "object",
                "description": "With from and to: one entry a sample, keyed by its time in UTC, \
                                YYYY-MM-DD HH:MM:SS, with a fraction where a second has several; \
                                and one where samples are missing, with the reason.",
                "additionalProperties": { "anyOf": [gap, one] },
            }));
        }
        all.extend(self.other.map(|other| other(generator)));
        all.extend(self.steps.map(|step| {
            json!({
                "type": "object",
                "description": "With step: one for each, keyed by its begin in UTC.",
                "additionalProperties": step(generator),
            })
        }));
        let schema = match all.len() {
            0 => json!({}),
            1 => all.remove(0),
            _ => json!({ "anyOf": all }),
        };
        json!({ self.media: { "schema": schema } })
    }
}

impl Operation {
    fn new(method: &'static str, id: &str, summary: &str) -> Self {
        Self {
            method,
            id: id.to_owned(),
            summary: summary.to_owned(),
            parameters: |_| json!([]),
            body: None,
            body_schema: None,
            success: Vec::new(),
            // A query that cannot be read, and a page of another site.
            errors: vec![400, 403],
        }
    }

    pub(crate) fn get(id: &str, summary: &str) -> Self {
        Self::new("get", id, summary)
    }

    pub(crate) fn post(id: &str, summary: &str) -> Self {
        Self::new("post", id, summary)
    }

    pub(crate) fn put(id: &str, summary: &str) -> Self {
        Self::new("put", id, summary)
    }

    pub(crate) fn delete(id: &str, summary: &str) -> Self {
        Self::new("delete", id, summary)
    }

    pub(crate) fn query<T: JsonSchema>(mut self) -> Self {
        self.parameters = query_parameters::<T>;
        self
    }

    pub(crate) fn body<T: JsonSchema>(mut self) -> Self {
        self.body_schema = Some(schema_of::<T>);
        self
    }

    /// One sample or an array of them in JSON, or frames of an agent.
    pub(crate) fn samples_body<T: JsonSchema>(mut self) -> Self {
        self.body_schema = Some(|generator| {
            let one = schema_of::<T>(generator);
            json!({ "oneOf": [one, { "type": "array", "items": one }] })
        });
        self.body = Some(json!({
            routes::FRAMES_MEDIA_TYPE: {
                "schema": {
                    "description": "The compact form that the agent of the same version writes.",
                }
            }
        }));
        self
    }

    pub(crate) fn answers(mut self, answers: Answers) -> Self {
        self.success.push((200, Some(answers)));
        self
    }

    pub(crate) fn created<T: JsonSchema>(mut self) -> Self {
        self.success.push((201, Some(Answers::json::<T>())));
        self
    }

    pub(crate) fn no_content(mut self) -> Self {
        self.success.push((204, None));
        self
    }

    pub(crate) fn errors(mut self, statuses: &[u16]) -> Self {
        self.errors.extend(statuses);
        self
    }

    fn describe(&self, path: &str, generator: &mut SchemaGenerator) -> Value {
        let mut parameters = (self.parameters)(generator)
            .as_array()
            .cloned()
            .unwrap_or_default();
        let in_path = path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        for name in in_path {
            let (schema, description) = match name {
                "pid" => (
                    json!({ "type": "integer", "minimum": 0 }),
                    "Process id; 0 is the idle task.",
                ),
                _ => (
                    json!({ "type": "string" }),
                    "A node's UID, host name or address.",
                ),
            };
            parameters.push(json!({
                "name": name, "in": "path", "required": true,
                "schema": schema, "description": description,
            }));
        }
        let mut responses = Map::new();
        for (status, answers) in &self.success {
            let mut response = json!({ "description": reason(*status) });
            if let Some(answers) = answers {
                response["content"] = answers.content(generator);
            }
            responses.insert(status.to_string(), response);
        }
        let problem = schema_of::<Problem>(generator);
        for status in &self.errors {
            responses.insert(
                status.to_string(),
                json!({
                    "description": reason(*status),
                    "content": { routes::PROBLEM_MEDIA_TYPE: { "schema": problem } },
                }),
            );
        }
        let mut operation = json!({
            "operationId": self.id,
            "summary": self.summary,
            "parameters": parameters,
            "responses": responses,
        });
        if let Some(schema) = self.body_schema {
            let mut content = json!({ "application/json": { "schema": schema(generator) } });
            for (media, other) in self.body.iter().filter_map(Value::as_object).flatten() {
                content[media] = other.clone();
            }
            operation["requestBody"] = json!({ "required": true, "content": content });
        }
        operation
    }
}

fn query_parameters<T: JsonSchema>(_: &mut SchemaGenerator) -> Value {
    let schema = schemars::schema_for!(T).to_value();
    let properties = schema
        .get("properties")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    let parameter = |(name, property): (String, Value)| {
        json!({
            "name": name, "in": "query", "required": false,
            "schema": { "type": "string" },
            "description": property.get("description"),
        })
    };
    properties.into_iter().map(parameter).collect()
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "The answer",
        201 => "Registered; Location says where",
        204 => "Done",
        400 => "The request cannot be parsed",
        401 => "Nobody knows who asks: there is no token, or none that is good",
        403 => "They may not, or the request comes from a page of another site",
        404 => "Nothing has this name; names lists the nearest",
        408 => "The body did not arrive in time",
        409 => {
            "More than one node has this name (names lists their UIDs), another has it already, or a \
             frame says what differs from one that is not stored here"
        }
        413 => "The body is too large",
        422 => "A field of the body is wrong; field names it",
        429 => {
            "The caller, or the node, takes more than its share; Retry-After says when to come back"
        }
        503 => "The history cannot be read or written at the moment",
        _ => "Error",
    }
}

/// The document as it grows.
pub(crate) struct Document {
    generator: SchemaGenerator,
    paths: Map<String, Value>,
}

impl Default for Document {
    fn default() -> Self {
        let settings = SchemaSettings::draft2020_12()
            .with(|settings| settings.definitions_path = "/components/schemas".into());
        Self {
            generator: settings.into_generator(),
            paths: Map::new(),
        }
    }
}

impl Document {
    pub(crate) fn add(&mut self, path: &str, operation: Operation) {
        let described = operation.describe(path, &mut self.generator);
        let methods = self.paths.entry(path).or_insert_with(|| json!({}));
        methods[operation.method] = described;
    }

    pub(crate) fn into_json(mut self) -> String {
        let document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "nodestats",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "What every process on every node does, now and in the past. \
                                Times without a zone are UTC.",
                "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            },
            "paths": self.paths,
            "components": { "schemas": self.generator.take_definitions(true) },
        });
        let mut text = serde_json::to_string_pretty(&document).expect("plain data");
        text.push('\n');
        text
    }
}
