//! `GET /residency`: which of a model's layers are in memory now, in the page cache that all processes share.

use std::io::{BufRead, BufReader};

use super::json::{Json, object};
use super::version::Version;
use crate::checkpoint::Checkpoint;

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
        "resident" => total, "is_known" => known, "processes" => sharers(checkpoint), "layers" => layers.collect::<Vec<_>>(),
    }
}

/// How many processes have the file mapped, this one among them, as far as this user may look into them. Only how many:
/// what others run is nothing for clients.
fn sharers(checkpoint: &Checkpoint) -> usize {
    // As the kernel writes it in a table of maps. Its device is not always that of the file (overlayfs): then the name tells.
    let files: Vec<(String, String)> = checkpoint
        .maps()
        .iter()
        .filter_map(|map| {
            let (device, inode) = map.identity()?.file;
            let place = format!(" {:02x}:{:02x} {inode} ", libc::major(device), libc::minor(device));
            let path = std::fs::canonicalize(map.path()).ok()?;
            Some((place, format!(" {}", path.display())))
        })
        .collect();
    let has_it = |pid: &str| {
        let Ok(maps) = std::fs::File::open(format!("/proc/{pid}/maps")) else { return false };
        let lines = BufReader::new(maps).lines().map_while(Result::ok);
        lines.into_iter().any(|line| files.iter().any(|(place, name)| line.contains(place) || line.ends_with(name)))
    };
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    let names = processes.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.bytes().all(|b| b.is_ascii_digit()) && has_it(name)).count()
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
