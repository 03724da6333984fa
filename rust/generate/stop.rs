//! Stop strings: text that ends an answer, found in text that comes in pieces.

/// Finds stop strings in text that comes in pieces.
///
/// How the text is cut into pieces makes no difference: the stop string that is complete first counts,
/// and of two that are complete at the same time the longer.
#[derive(Debug)]
pub struct StopStrings {
    stop: Vec<String>,
    held: String, // the start of a stop string, perhaps
}

impl StopStrings {
    /// Looks for these strings. An empty one ends any text.
    pub fn new(stop: Vec<String>) -> Self {
        Self { stop, held: String::new() }
    }

    /// Takes a piece; gives the text that is certain, and whether a stop string ended it.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let found = self.stop.iter().filter_map(|stop| self.held.find(stop).map(|start| (start + stop.len(), start)));
        if let Some((_, start)) = found.min() {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return (text, true);
        }
        let may_start = |&(i, _): &(usize, char)| self.stop.iter().any(|stop| stop.starts_with(&self.held[i..]));
        let certain = self.held.char_indices().find(may_start).map_or(self.held.len(), |(i, _)| i);
        let rest = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What is held back, when no more text comes: it is text after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cut_of_the_text_into_pieces_makes_no_difference() {
        let stops = ["ab", "bcb", "cbc", "é!", "aé"];
        let mut rng = crate::sampling::Rng::new(5);
        let mut random = |n: u64| rng.next_u64() % n;
        for _ in 0..3000 {
            let text: String = (0..12).map(|_| ['a', 'b', 'c', 'é', '!'][random(5) as usize]).collect();
            let chosen: Vec<String> = stops.iter().filter(|_| random(2) == 0).map(|s| s.to_string()).collect();
            let run = |mut cut: Box<dyn FnMut() -> bool + '_>| {
                let mut finder = StopStrings::new(chosen.clone());
                let (mut out, mut piece) = (String::new(), String::new());
                for c in text.chars() {
                    piece.push(c);
                    if cut() {
                        let (text, stopped) = finder.push(&std::mem::take(&mut piece));
                        out.push_str(&text);
                        if stopped {
                            return out;
                        }
                    }
                }
                let (text, stopped) = finder.push(&piece);
                out + &text + if stopped { "" } else { &finder.held }
            };
            let one_by_one = run(Box::new(|| true));
            assert_eq!(run(Box::new(|| false)), one_by_one, "{text} {chosen:?}");
            assert_eq!(run(Box::new(|| random(3) == 0)), one_by_one, "{text} {chosen:?}");
        }
    }
}
