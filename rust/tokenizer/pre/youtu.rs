//! Youtu, in two steps: `[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+`, then `gpt4o` with `\p{N}`.

use std::ops::Range;

use super::class::first;
use super::{Step, gpt4o};

/// The steps.
pub(super) const STEPS: &[Step] = &[script, |text| Some(0..gpt4o::one_digit(text))];

fn script(text: &str) -> Option<Range<usize>> {
    let start = text.find(|c| of(c).is_some())?;
    let which = of(first(&text[start..]));
    let len = text[start..].find(|c| of(c) != which).unwrap_or(text.len() - start);
    Some(start..start + len)
}

/// Which of the runs a character belongs to, if any.
fn of(c: char) -> Option<u8> {
    match c {
        '가'..='힣' | 'ㄱ'..='ㆎ' => Some(0),
        '！' | '…' | '“' | '”' | '‘' | '’' | '—' | '：' | '；' | '，' | '、'..='〿' | '︰'..='﹏' => {
            Some(1)
        }
        'ㄅ'..='ㄯ' => Some(2),
        '一'..='龥' | '\u{3040}'..='ヿ' => Some(3),
        _ => None,
    }
}
