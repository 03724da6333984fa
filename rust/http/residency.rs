//! `GET /residency`: which of a model's layers are in memory now, in the page cache that all processes share.

use super::json::{Json, object};
use super::version::Version;

/// Of the file: bytes, and how many of them are in memory, as a whole and by layer in the order of a pass.
pub fn residency(version: &Version) -> Json {
    let checkpoint = version.model.checkpoint();
    let mut spans: Vec<(usize, usize, String)> = checkpoint
        .tensors()
        .iter()
        .filter_map(|tensor| {
            let bytes = tensor.view.bytes();
            Some((checkpoint.position(bytes)?, bytes.len(), layer_of(tensor.name())))
        })
        .collect();
    spans.sort_unstable();
    let resident = |start: usize, len: usize| -> usize {
        checkpoint.pieces(start..start + len).map(|(map, range)| map.resident(range)).sum()
    };
    let header = spans.first().map_or(checkpoint.size(), |span| span.0);
    let mut layers: Vec<(String, usize, usize)> = vec![("header".into(), header, resident(0, header))];
    for (start, len, name) in spans {
        let found = resident(start, len);
        match layers.iter_mut().find(|layer| layer.0 == name) {
            Some(layer) => (layer.1, layer.2) = (layer.1 + len, layer.2 + found),
            None => layers.push((name, len, found)),
        }
    }
    layers.sort_by_key(|layer| place(&layer.0));
    let total: usize = layers.iter().map(|layer| layer.2).sum();
    let known = checkpoint.maps().iter().all(|map| map.residency_known());
    let layers = layers.into_iter().map(|(name, bytes, resident)| {
        object! { "name" => name, "bytes" => bytes, "resident" => resident }
    });
    object! {
        "model" => version.name.as_str(), "version" => version.number.as_str(), "bytes" => checkpoint.size(),
        "resident" => total, "is_known" => known, "layers" => layers.collect::<Vec<_>>(),
    }
}

fn layer_of(tensor: &str) -> String {
    let mut parts = tensor.split('.');
    match (parts.next(), parts.next()) {
        (Some("blk"), Some(number)) if number.bytes().all(|b| b.is_ascii_digit()) => format!("blk.{number}"),
        (first, _) => first.unwrap_or_default().to_string(),
    }
}

/// Sorts layers as a pass uses them.
fn place(name: &str) -> (u8, usize, String) {
    match name.strip_prefix("blk.").and_then(|number| number.parse().ok()) {
        Some(number) => (2, number, String::new()),
        None if name == "header" => (0, 0, String::new()),
        None if name.starts_with("token_") || name.starts_with("position_") => (1, 0, name.into()),
        None => (3, 0, name.into()),
    }
}
