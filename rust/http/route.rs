//! The routes: one table, of which the dispatcher, the labels of metrics and `/openapi.json` are made.

/// What answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handler {
    Page,
    Health,
    Ready,
    Models,
    Model,
    ChatCompletions,
    Completions,
    Completion,
    Embeddings,
    Embedding,
    Tokenize,
    Detokenize,
    TokenizerInfo,
    ApplyTemplate,
    InputTokens,
    Props,
    Slots,
    Metrics,
    Residency,
    OpenApi,
    Responses,
    Score,
    Classify,
    Rerank,
    V2Server,
    V2Live,
    V2Ready,
    V2Model,
    V2ModelReady,
    Infer,
    Generate,
    GenerateStream,
    RepositoryIndex,
    RepositoryLoad,
    RepositoryUnload,
}

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Everybody,
    /// Those who have a key, if keys are set.
    Key,
    /// Those who may change what is served.
    Admin,
}

/// A route.
#[derive(Debug)]
pub struct Route {
    pub method: &'static str,
    /// `{name}` stands for a segment.
    pub path: &'static str,
    pub aliases: &'static [&'static str],
    pub access: Access,
    pub handler: Handler,
    pub summary: &'static str,
    /// Whether it gives the engine something to do: refused at once when that has too much.
    pub computes: bool,
}

const fn get(path: &'static str, aliases: &'static [&'static str], handler: Handler, summary: &'static str) -> Route {
    Route { method: "GET", path, aliases, access: Access::Everybody, handler, summary, computes: false }
}

const fn post(path: &'static str, aliases: &'static [&'static str], handler: Handler, summary: &'static str) -> Route {
    Route { method: "POST", path, aliases, access: Access::Key, handler, summary, computes: false }
}

const fn compute(
    path: &'static str,
    aliases: &'static [&'static str],
    handler: Handler,
    summary: &'static str,
) -> Route {
    Route { method: "POST", path, aliases, access: Access::Key, handler, summary, computes: true }
}

const fn with_key(route: Route) -> Route {
    Route { access: Access::Key, ..route }
}

/// All of them.
pub const ROUTES: &[Route] = &[
    get("/", &[], Handler::Page, "A page to talk with the model"),
    get("/health", &["/v1/health", "/livez"], Handler::Health, "Whether the server lives and takes requests"),
    get("/readyz", &[], Handler::Ready, "Whether new requests should be sent here"),
    with_key(get("/v1/models", &["/models"], Handler::Models, "The models that are served")),
    with_key(get("/v1/models/{id}", &["/models/{id}"], Handler::Model, "One of them")),
    compute("/v1/chat/completions", &["/chat/completions"], Handler::ChatCompletions, "An answer to a conversation"),
    compute("/v1/completions", &[], Handler::Completions, "A text, continued"),
    compute("/completion", &["/completions"], Handler::Completion, "The same, as llama.cpp's server has it"),
    compute("/v1/embeddings", &[], Handler::Embeddings, "Vectors of texts"),
    compute("/embedding", &["/embeddings"], Handler::Embedding, "The same, as llama.cpp's server has it"),
    post("/tokenize", &[], Handler::Tokenize, "The tokens of a text or of a conversation"),
    post("/detokenize", &[], Handler::Detokenize, "The text of tokens"),
    with_key(get("/tokenizer_info", &[], Handler::TokenizerInfo, "Special tokens and the chat template")),
    post("/apply-template", &[], Handler::ApplyTemplate, "The prompt that a conversation becomes"),
    post(
        "/v1/chat/completions/input_tokens",
        &["/chat/completions/input_tokens"],
        Handler::InputTokens,
        "How many tokens a conversation has",
    ),
    with_key(get("/props", &[], Handler::Props, "What the server runs with")),
    with_key(get("/slots", &[], Handler::Slots, "What it is doing")),
    get("/metrics", &[], Handler::Metrics, "Metrics for Prometheus"),
    with_key(get("/residency", &[], Handler::Residency, "Which layers of the model are in memory")),
    get("/openapi.json", &[], Handler::OpenApi, "This list, for programs"),
    compute("/v1/responses", &["/responses"], Handler::Responses, "An answer, as OpenAI's Responses API has it"),
    compute("/v1/score", &["/score"], Handler::Score, "How likely texts are behind a prompt"),
    compute("/v1/classify", &["/classify"], Handler::Classify, "Which of some labels fits a text"),
    compute("/v1/rerank", &["/rerank"], Handler::Rerank, "Documents by how well they answer a query"),
    get("/v2", &[], Handler::V2Server, "Open Inference Protocol: the server"),
    get("/v2/health/live", &[], Handler::V2Live, "Open Inference Protocol: whether it lives"),
    get("/v2/health/ready", &[], Handler::V2Ready, "Open Inference Protocol: whether it takes requests"),
    with_key(get(
        "/v2/models/{model}",
        &["/v2/models/{model}/versions/{version}"],
        Handler::V2Model,
        "Open Inference Protocol: a model",
    )),
    with_key(get(
        "/v2/models/{model}/ready",
        &["/v2/models/{model}/versions/{version}/ready"],
        Handler::V2ModelReady,
        "Open Inference Protocol: whether a model can be used",
    )),
    compute(
        "/v2/models/{model}/infer",
        &["/v2/models/{model}/versions/{version}/infer"],
        Handler::Infer,
        "Open Inference Protocol: texts continued, or their vectors",
    ),
    compute(
        "/v2/models/{model}/generate",
        &["/v2/models/{model}/versions/{version}/generate"],
        Handler::Generate,
        "Triton's generate: a text, continued",
    ),
    compute(
        "/v2/models/{model}/generate_stream",
        &["/v2/models/{model}/versions/{version}/generate_stream"],
        Handler::GenerateStream,
        "Triton's generate_stream: the same as a stream",
    ),
    admin("/v2/repository/index", Handler::RepositoryIndex, "Triton's repository: all versions of all models"),
    admin("/v2/repository/models/{model}/load", Handler::RepositoryLoad, "Load a model anew, or another version of it"),
    admin("/v2/repository/models/{model}/unload", Handler::RepositoryUnload, "Take a model out"),
];

const fn admin(path: &'static str, handler: Handler, summary: &'static str) -> Route {
    Route { method: "POST", path, aliases: &[], access: Access::Admin, handler, summary, computes: false }
}

/// What a request line leads to.
pub enum Found {
    Route(&'static Route, Vec<String>),
    /// There is such a path, for these methods.
    Methods(&'static str),
    Nothing,
}

pub fn find(method: &str, path: &str) -> Found {
    let mut methods = Found::Nothing;
    for route in ROUTES {
        for pattern in [route.path].iter().chain(route.aliases) {
            let Some(captures) = matches(pattern, path) else { continue };
            if method == route.method || (method == "HEAD" && route.method == "GET") {
                return Found::Route(route, captures);
            }
            methods = Found::Methods(if route.method == "GET" { "GET, HEAD, OPTIONS" } else { "POST, OPTIONS" });
        }
    }
    methods
}

/// What the segments in braces stand for, if `path` is of this form.
fn matches(pattern: &str, path: &str) -> Option<Vec<String>> {
    if !pattern.contains('{') {
        return (pattern == path).then(Vec::new);
    }
    let (mut segments, mut captures) = (path.split('/'), Vec::new());
    for expected in pattern.split('/') {
        let segment = segments.next()?;
        if expected.starts_with('{') {
            captures.push(percent_decoded(segment)?);
        } else if expected != segment {
            return None;
        }
    }
    segments.next().is_none().then_some(captures)
}

fn percent_decoded(text: &str) -> Option<String> {
    if text.is_empty() {
        return None;
    }
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let hex = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_one_route() {
        let mut paths: Vec<_> = ROUTES
            .iter()
            .flat_map(|r| [r.path].into_iter().chain(r.aliases.iter().copied()).map(move |p| (r.method, p)))
            .collect();
        let n = paths.len();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), n);
        for (method, path) in paths {
            assert!(matches!(find(method, path), Found::Route(..)), "{path}");
        }
        assert!(matches!(find("PUT", "/v1/completions"), Found::Methods("POST, OPTIONS")));
        assert!(matches!(find("HEAD", "/health"), Found::Route(..)));
        assert!(matches!(find("GET", "/v1"), Found::Nothing));
        assert!(matches!(find("GET", "/v1/models/"), Found::Nothing));
        let Found::Route(route, captures) = find("GET", "/v1/models/a%2Fb") else { panic!() };
        assert_eq!((route.handler, captures), (Handler::Model, vec!["a/b".into()]));
        assert!(matches!(find("GET", "/v1/models/%f"), Found::Nothing));
    }
}
