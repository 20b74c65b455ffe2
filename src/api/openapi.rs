//! The OpenAPI document, made from the table of routes and the types of the wire.
//!
//! Nothing is described here that is not served: paths, bodies and answers come from [`ROUTES`], fields from the types.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use utoipa::openapi::path::{HttpMethod, Operation, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Components, Content, ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, PathItem, PathsBuilder,
    Ref, RefOr, Required, ResponseBuilder, Schema,
};

use super::listing::{LIST_LENGTH_MAX, PLACE_MAX};
use super::problem::PROBLEM_JSON;
use super::routes::{Access, Answer, Document, Method, QueryParameter, ROUTES, Route};
use super::wire::Problem;

/// The document as JSON.
pub static OPENAPI: LazyLock<String> =
    LazyLock::new(|| document().to_pretty_json().expect("the document is plain data and always has a JSON form"));

/// The document.
pub fn document() -> OpenApi {
    let mut schemas = Vec::new();
    let mut paths = PathsBuilder::new();
    for route in ROUTES {
        let method = match route.method {
            Method::Get => HttpMethod::Get,
            Method::Post => HttpMethod::Post,
        };
        paths = paths.path(route.path, PathItem::new(method, operation(route, &mut schemas)));
    }
    reference(Document::of::<Problem>(), &mut schemas);
    let mut components = Components::new();
    components.schemas = schemas.into_iter().collect::<BTreeMap<_, _>>();
    for (name, scheme) in [
        ("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer))),
        ("header", SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-TOKEN")))),
        ("agent", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer))),
    ] {
        components.add_security_scheme(name, scheme);
    }
    let info = InfoBuilder::new()
        .title("Stormglass controller")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Every error is an RFC 9457 problem document. Lengths in bytes, times in seconds, moments in RFC 3339 and UTC; \
             null means unknown.",
        ))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build();
    OpenApiBuilder::new().info(info).paths(paths).components(Some(components)).build()
}

type Schemas = Vec<(String, RefOr<Schema>)>;

/// Remembers the schema of a document, and refers to it.
fn reference(document: Document, schemas: &mut Schemas) -> RefOr<Schema> {
    let name = (document.name)().into_owned();
    (document.collect)(schemas);
    let one: RefOr<Schema> = if name == "Value" {
        ObjectBuilder::new().schema_type(Type::Object).into()
    } else {
        schemas.push((name.clone(), (document.schema)()));
        Ref::from_schema_name(name).into()
    };
    if document.is_list { ArrayBuilder::new().items(one).into() } else { one }
}

fn operation(route: &Route, schemas: &mut Schemas) -> Operation {
    let mut built = OperationBuilder::new()
        .operation_id(Some(route.verb.replace('-', "_")))
        .summary(Some(route.says))
        .description(Some(who(route.access)));
    for name in route.path_parameters() {
        let schema = ObjectBuilder::new().schema_type(Type::String).build();
        built = built.parameter(
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Path)
                .required(Required::True)
                .schema(Some(schema)),
        );
    }
    if route.is_mutation() {
        let schema = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(255));
        built = built.parameter(
            ParameterBuilder::new()
                .name("Idempotency-Key")
                .parameter_in(ParameterIn::Header)
                .required(Required::False)
                .description(Some("the same key and request again: the same answer, and nothing is done twice"))
                .schema(Some(schema)),
        );
    }
    for parameter in route.query {
        built = built.parameter(query(parameter));
    }
    if let Some(body) = route.body {
        let content = Content::new(Some(reference(body, schemas)));
        let required = if needs_body(&body) { Required::True } else { Required::False };
        built = built.request_body(Some(
            RequestBodyBuilder::new().content("application/json", content).required(Some(required)).build(),
        ));
    } else if route.method == Method::Post {
        let nothing = ObjectBuilder::new()
            .schema_type(Type::Object)
            .additional_properties(Some(utoipa::openapi::schema::AdditionalProperties::FreeForm(false)))
            .description(Some("No settings: an empty object, or no body."));
        let content = ContentBuilder::new().schema(Some(nothing)).build();
        built = built.request_body(Some(RequestBodyBuilder::new().content("application/json", content).build()));
    }
    let content = match route.answer {
        Answer::Json(document) => ("application/json", Content::new(Some(reference(document, schemas)))),
        // A schema would be that of the whole stream, which has no end; the route says what each event is.
        Answer::Text(media_type @ "text/event-stream") => (media_type, ContentBuilder::new().build()),
        Answer::Text(media_type) => {
            (media_type, Content::new(Some(ObjectBuilder::new().schema_type(Type::String).build())))
        }
    };
    built = built
        .response(route.status.to_string(), ResponseBuilder::new().description("done").content(content.0, content.1));
    for (status, description) in refusals(route) {
        let problem = Content::new(Some(Ref::from_schema_name("Problem")));
        built = built.response(
            status.to_string(),
            ResponseBuilder::new().description(description).content(PROBLEM_JSON, problem),
        );
    }
    match route.access {
        Access::Open => built.security(SecurityRequirement::default()),
        Access::Agents => built.security(requirement("agent")),
        Access::AtLeast(_) => built.security(requirement("bearer")).security(requirement("header")),
    }
    .build()
}

/// True where an empty object is not enough.
fn needs_body(body: &Document) -> bool {
    match (body.schema)() {
        RefOr::T(Schema::Object(object)) => !object.required.is_empty(),
        _ => true,
    }
}

fn requirement(name: &str) -> SecurityRequirement {
    SecurityRequirement::new(name, Vec::<String>::new())
}

fn query(parameter: &QueryParameter) -> ParameterBuilder {
    let schema = if parameter.is_number {
        let (least, greatest) = match parameter.name {
            "limit" => (1, LIST_LENGTH_MAX as u64),
            _ => (0, PLACE_MAX),
        };
        ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(least)).maximum(Some(greatest))
    } else {
        ObjectBuilder::new().schema_type(Type::String)
    };
    ParameterBuilder::new()
        .name(parameter.name)
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some(parameter.says))
        .schema(Some(schema))
}

fn who(access: Access) -> String {
    match access {
        Access::Open => "No token is needed.".to_owned(),
        Access::Agents => "Role: agent.".to_owned(),
        Access::AtLeast(role) => format!("Role: {} or higher.", role.label()),
    }
}

/// Every status with which the route may refuse.
fn refusals(route: &Route) -> Vec<(u16, &'static str)> {
    let mut statuses = vec![(405, "the path takes another method")];
    if route.access != Access::Open {
        statuses.extend([
            (400, "what was sent is not understood"),
            (401, "no token, or none that is known"),
            (403, "the token's role does not suffice"),
            (404, "no such thing"),
            (429, "too many requests of one caller"),
            (500, "a fault of the controller"),
            (503, "not now; nothing was changed"),
        ]);
    } else if route.endpoint == super::routes::Endpoint::Ready {
        statuses.push((503, "not now"));
    }
    if route.method == Method::Post {
        statuses.extend([
            (408, "the body came too slowly"),
            (409, "refused by a guard; nothing was changed"),
            (413, "the body is too long"),
            (415, "the body is not declared as JSON"),
            (422, "an idempotency key was used for something else before, or fields exclude each other"),
            (504, "it may have happened"),
        ]);
    }
    statuses
}
