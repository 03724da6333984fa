//! What can be asked without giving the engine anything to do: answered at once, however busy it is.

use hyper::Response;
use hyper::header::{CONTENT_TYPE, HeaderValue};

use super::body::Body;
use super::error::Refusal;
use super::json::{Json, object};
use super::metrics::Page;
use super::native::tokenizer_info;
use super::oip;
use super::openapi::openapi;
use super::page::page;
use super::registry::{Entry, Registry, State};
use super::route::Handler;
use super::service::{Call, Phase, Reply, Shared, json};
use super::version::Version;
use crate::mapping::guarded;

pub fn answer(handler: Handler, call: &Call) -> Reply {
    let _guarded = guarded();
    let shared = &*call.service.shared;
    let name = call.captures.first().map(String::as_str);
    Ok(match handler {
        Handler::Page => page(),
        Handler::Health | Handler::Ready => health(call)?,
        Handler::Models => json(&object! { "object" => "list", "data" => models(&shared.registry) }),
        Handler::Model => {
            let found = models(&shared.registry).into_iter().find(|model| model.get("id").and_then(Json::str) == name);
            json(&found.ok_or_else(|| Refusal::new(404, "model_not_found", "there is no such model"))?)
        }
        Handler::TokenizerInfo => json(&tokenizer_info(&*call.version(None)?)?),
        Handler::Props => json(&props(&*call.version(None)?, shared)),
        Handler::Slots => json(&slots(call)),
        Handler::Metrics => metrics(call),
        Handler::OpenApi => json(&openapi()),
        Handler::V2Server => json(&oip::server()),
        Handler::V2Live => json(&object! { "live" => true }),
        Handler::V2Ready => {
            health(call)?;
            json(&object! { "ready" => true })
        }
        Handler::V2Model => json(&oip::model(call)?),
        Handler::V2ModelReady => json(&oip::ready(call)?),
        _ => return Err(Refusal::new(405, "method_not_allowed", "this path is for POST")),
    })
}

fn health(call: &Call) -> Reply {
    if *call.service.phase.borrow() > Phase::Open {
        return Err(Refusal::draining());
    }
    if call.service.scheduler.has_crashed() {
        return Err(Refusal::new(503, "crashed", "the engine has stopped because of an error in it"));
    }
    if call.service.shared.registry.versions().is_empty() {
        return Err(Refusal::new(503, "loading", "no model is loaded"));
    }
    Ok(json(&object! { "status" => "ok" }))
}

/// A model for each name, with its versions.
fn models(registry: &Registry) -> Vec<Json> {
    let entries = registry.entries();
    let mut names: Vec<&str> = Vec::new();
    for entry in &entries {
        if !names.contains(&entry.name.as_str()) {
            names.push(&entry.name);
        }
    }
    names.iter().map(|name| model(name, &entries)).collect()
}

fn model(name: &str, entries: &[Entry]) -> Json {
    let own = || entries.iter().filter(|entry| entry.name == name);
    let ready = own().filter_map(|entry| match &entry.state {
        State::Ready(version) => Some((entry.is_default, version)),
        _ => None,
    });
    let version = ready.max_by_key(|(is_default, _)| *is_default).map(|(_, version)| version);
    let versions = own().map(|entry| {
        let mut json = object! {
            "version" => entry.number.as_str(), "state" => entry.state.name(), "default" => entry.is_default,
        };
        if let State::Failed(why) = &entry.state {
            json.push("reason", why.as_str());
        }
        json
    });
    let mut json = object! { "id" => name, "object" => "model", "created" => version.map_or(0, |v| v.created), "owned_by" => "llama_rs" };
    if let Some(version) = version {
        let config = version.model.config();
        let sizes = version.model.checkpoint().tensors().iter().map(|t| t.view.shape().iter().product::<usize>());
        json.push("max_model_len", version.context_length());
        json.push(
            "meta",
            object! {
                "architecture" => config.architecture.as_str(),
                "n_vocab" => config.vocab_size,
                "n_ctx_train" => config.context_length,
                "n_embd" => config.dim,
                "n_params" => sizes.sum::<usize>(),
                "size" => version.model.checkpoint().size(),
            },
        );
    }
    json.push("versions", versions.collect::<Vec<_>>());
    json.push("status", object! { "value" => if version.is_some() { "loaded" } else { "failed" } });
    json
}

/// What clients of llama.cpp's server read. Of the path only the name of the file.
fn props(version: &Version, shared: &Shared) -> Json {
    let name = version.model.checkpoint().path().file_name().map(|name| name.to_string_lossy().into_owned());
    let s = &version.defaults.sampling;
    object! {
        "default_generation_settings" => object! {
            "n_ctx" => version.context_length(),
            "params" => object! {
                "temperature" => s.temperature, "top_k" => s.top_k, "top_p" => s.top_p, "min_p" => s.min_p,
                "n_predict" => version.defaults.max_tokens.map_or(Json::Int(-1), Json::from),
            },
        },
        "total_slots" => shared.config.limits.parallel,
        "model_path" => name,
        "model_alias" => version.name.as_str(),
        "chat_template" => version.template().map_or(String::new(), |template| template.source(false).into()),
        "bos_token" => version.tokenizer().ok().and_then(|t| t.bos()).map(|id| super::shapes::token_text(version, id)),
        "eos_token" => version.tokenizer().ok().and_then(|t| t.eos()).map(|id| super::shapes::token_text(version, id)),
        "modalities" => object! { "vision" => false, "audio" => false },
        "build_info" => version.fingerprint.as_str(),
    }
}

/// A slot for each answer that can be made at the same time. No prompts: they are their askers'.
fn slots(call: &Call) -> Json {
    let stats = call.service.scheduler.stats();
    let n_ctx = call.version(None).map_or(0, |version| version.context_length());
    let slot = |id: usize| {
        let mut slot = object! { "id" => id, "n_ctx" => n_ctx, "is_processing" => id < stats.slots.len() };
        if let Some(&(prompt, computed, generated)) = stats.slots.get(id) {
            slot.push("n_prompt_tokens", prompt);
            slot.push("n_prompt_tokens_processed", computed);
            slot.push("n_decoded", generated);
        }
        slot
    };
    Json::List((0..call.service.shared.config.limits.parallel.min(256)).map(slot).collect())
}

fn metrics(call: &Call) -> Response<Body> {
    let (shared, stats) = (&call.service.shared, call.service.scheduler.stats());
    let mut page = Page::new();
    page.add(&shared.metrics);
    page.gauge("requests_running", "Answers that are being made.", &[("", stats.running as f64)]);
    page.gauge("requests_waiting", "Answers that wait for their turn.", &[("", stats.waiting as f64)]);
    page.gauge("queued_prompt_tokens", "Tokens of their prompts.", &[("", stats.queued_tokens as f64)]);
    let bytes = [
        ("state=\"used\"", stats.kv_used as f64),
        ("state=\"cached\"", stats.kv_cached as f64),
        ("state=\"budget\"", stats.kv_budget as f64),
    ];
    page.gauge("kv_bytes", "Memory of keys and values.", &bytes);
    page.counter("steps_total", "Steps of the engine.", stats.steps);
    page.seconds("step_seconds_total", "Time of all steps.", stats.step_seconds);
    page.gauge("last_step_seconds", "Time of the last step.", &[("", stats.last_step)]);
    let versions = shared.registry.versions();
    let predicted: Vec<(String, f64)> = versions
        .iter()
        .filter_map(|v| Some((v, stats.predicted.iter().find(|(path, _)| path == v.model.checkpoint().path())?)))
        .flat_map(|(v, (_, rows))| {
            let (name, number) = (label(&v.name), label(&v.number));
            rows.iter()
                .map(move |(n, seconds)| (format!("model=\"{name}\",version=\"{number}\",rows=\"{n}\""), *seconds))
        })
        .collect();
    let predicted: Vec<(&str, f64)> = predicted.iter().map(|(labels, x)| (labels.as_str(), *x)).collect();
    page.gauge("step_predicted_seconds", "What a step of so many rows is expected to take.", &predicted);
    page.counter("preemptions_total", "Answers that made room for others for a while.", stats.preemptions);
    page.counter("prefix_evicted_tokens_total", "Tokens that were kept and had to go.", stats.evicted_tokens);
    let states: Vec<(String, f64)> = shared
        .registry
        .entries()
        .iter()
        .map(|e| {
            let (name, number, state) = (label(&e.name), label(&e.number), e.state.name());
            (format!("model=\"{name}\",version=\"{number}\",state=\"{state}\""), 1.0)
        })
        .collect();
    let states: Vec<(&str, f64)> = states.iter().map(|(labels, one)| (labels.as_str(), *one)).collect();
    page.gauge("model_state", "Versions of models by what became of them.", &states);
    let labels: Vec<(String, f64)> = versions
        .iter()
        .map(|v| {
            let labels = format!("model=\"{}\",version=\"{}\",kind=\"file\"", label(&v.name), label(&v.number));
            (labels, v.model.checkpoint().size() as f64)
        })
        .collect();
    let labels: Vec<(&str, f64)> = labels.iter().map(|(labels, size)| (labels.as_str(), *size)).collect();
    page.gauge("model_bytes", "Bytes of model files.", &labels);
    let build = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    page.gauge("build_info", "Which build this is.", &[(&build, 1.0)]);
    let connections = super::service::CONNECTIONS.get() as f64;
    page.gauge("connections", "Connections that are open.", &[("", connections)]);
    let model = versions.first().map_or_else(String::new, |version| label(&version.name));
    for &names in &shared.config.metrics_names {
        page.add_names(names, &shared.metrics, &stats, &model);
    }
    let mut response = Response::new(Body::whole(page.text()));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A value of a label, escaped.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
