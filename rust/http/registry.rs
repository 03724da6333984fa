//! The models that are served, and their versions.
//!
//! A name leads to its default version, `name@3` to a certain one. Requests hold the version that they were for until they
//! are done, so that another can take the name at any moment: nobody waits, and nothing fails.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::sync::oneshot;

use super::error::{Answer, Refusal};
use super::json::{At, Json};
use super::version::Version;

/// The model that a request names, if it names one.
///
/// # Errors
/// 400 if that is no text.
pub fn asked_model(json: &Json) -> Answer<Option<&str>> {
    match json.get("model") {
        None | Some(Json::Null) => Ok(None),
        Some(value) => At { value, pointer: "/model".into() }.str().map(Some),
    }
}

/// Models by name.
pub struct Registry {
    entries: RwLock<Vec<Entry>>,
    orders: Mutex<Sender<Order>>,
    inbox: Mutex<Receiver<Order>>,
    is_kept: AtomicBool, // somebody takes orders
}

/// A version, whatever became of it.
#[derive(Clone)]
pub struct Entry {
    /// Of the model.
    pub name: String,
    /// Of the version.
    pub number: String,
    /// Whether the name alone means this one.
    pub is_default: bool,
    /// What became of it.
    pub state: State,
}

/// What became of a version.
#[derive(Clone)]
pub enum State {
    /// It is in use.
    Ready(Arc<Version>),
    /// It has left; some answers still hold it.
    Draining(Weak<Version>),
    /// Why it cannot be used.
    Failed(String),
}

impl State {
    /// In a word.
    pub fn name(&self) -> &'static str {
        match self {
            State::Ready(_) => "ready",
            State::Draining(_) => "draining",
            State::Failed(_) => "failed",
        }
    }
}

/// What somebody asks of whoever looks after the models.
pub struct Order {
    /// What to do.
    pub what: Change,
    /// With which model.
    pub model: String,
    /// Of a load: which version is to be the default.
    pub number: Option<String>,
    /// Who asked is told that it is done, or why not.
    pub done: oneshot::Sender<Result<(), String>>,
}

/// What can be done with a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Open it anew, or another version of it.
    Load,
    /// Take it out.
    Unload,
}

impl Registry {
    /// The versions that are served from the beginning; the first is meant where nobody says which.
    pub fn new(versions: Vec<Arc<Version>>) -> Self {
        let entry = |version: Arc<Version>| Entry {
            name: version.name.clone(),
            number: version.number.clone(),
            is_default: true,
            state: State::Ready(version),
        };
        let (orders, inbox) = channel();
        let entries = RwLock::new(versions.into_iter().map(entry).collect());
        Self { entries, orders: Mutex::new(orders), inbox: Mutex::new(inbox), is_kept: AtomicBool::new(false) }
    }

    /// All that there is to know.
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The versions that can be used.
    pub fn versions(&self) -> Vec<Arc<Version>> {
        let ready = |entry: Entry| if let State::Ready(version) = entry.state { Some(version) } else { None };
        self.entries().into_iter().filter_map(ready).collect()
    }

    /// The version that `asked` names. Where there is but one model, any name means it, unless `strict`.
    ///
    /// # Errors
    /// 404 if there is none, 503 if there is none at all.
    pub fn find(&self, asked: Option<&str>, strict: bool) -> Answer<Arc<Version>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let ready =
            |entry: &Entry| if let State::Ready(version) = &entry.state { Some(Arc::clone(version)) } else { None };
        let by_name = |name: &str| entries.iter().filter(|e| e.is_default && e.name == name).find_map(ready);
        let found = match asked {
            None => entries.iter().filter(|e| e.is_default).find_map(ready),
            Some(asked) => by_name(asked).or_else(|| {
                let (name, number) = asked.rsplit_once('@')?;
                entries.iter().filter(|e| e.name == name && e.number == number).find_map(ready)
            }),
        };
        if let Some(version) = found {
            return Ok(version);
        }
        let only = || {
            let (first, others) = entries.split_first()?;
            let is_only = !strict && others.iter().all(|entry| entry.name == first.name);
            by_name(&first.name).filter(|_| is_only)
        };
        if let Some(version) = only() {
            return Ok(version);
        }
        if entries.is_empty() {
            return Err(Refusal::new(503, "loading", "no model is loaded").retry_after(Duration::from_secs(1)));
        }
        let asked: String = asked.unwrap_or_default().chars().take(100).flat_map(char::escape_debug).collect();
        let (name, number) = asked.rsplit_once('@').unwrap_or((&asked, ""));
        let code = if entries.iter().any(|e| e.name == name && !number.is_empty()) {
            "version_not_found"
        } else {
            "model_not_found"
        };
        Err(Refusal::new(404, code, format!("there is no model \"{asked}\"")).at("/model"))
    }

    /// Adds a version, in the place of one with its number, and has its name mean it if `is_default`.
    pub fn put(&self, version: Arc<Version>, is_default: bool) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|e| !matches!(&e.state, State::Draining(version) if version.strong_count() == 0));
        let is_first = !entries.iter().any(|e| e.name == version.name && e.is_default);
        let is_default = is_default || is_first;
        if is_default {
            entries.iter_mut().filter(|e| e.name == version.name).for_each(|e| e.is_default = false);
        }
        let (name, number) = (version.name.clone(), version.number.clone());
        let entry = Entry { name, number, is_default, state: State::Ready(version) };
        match entries.iter_mut().find(|e| e.name == entry.name && e.number == entry.number) {
            Some(place) => *place = Entry { is_default: is_default || place.is_default, ..entry },
            None => entries.push(entry),
        }
    }

    /// Takes a version out, or all of a name; answers that hold it go on. Gives whether there was any.
    pub fn remove(&self, name: &str, number: Option<&str>) -> bool {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let mut found = false;
        for entry in entries.iter_mut().filter(|e| e.name == name && number.is_none_or(|number| e.number == number)) {
            found = true;
            if let State::Ready(version) = &entry.state {
                entry.state = State::Draining(Arc::downgrade(version));
            }
        }
        entries.retain(|e| match &e.state {
            State::Ready(_) => true,
            State::Draining(version) => version.strong_count() > 0,
            State::Failed(_) => e.name != name || number.is_some_and(|number| e.number != number),
        });
        set_default(&mut entries, name);
        found
    }

    /// Says that a version cannot be used, and why. Another that can takes its name.
    pub fn fail(&self, name: &str, number: &str, why: String) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        match entries.iter_mut().find(|e| e.name == name && e.number == number) {
            Some(entry) => entry.state = State::Failed(why),
            None => {
                let (name, number) = (name.into(), number.into());
                entries.push(Entry { name, number, is_default: false, state: State::Failed(why) });
            }
        }
        set_default(&mut entries, name);
    }

    /// Looks for versions whose files are not what they were, and has them fail.
    pub fn fail_changed(&self) {
        for version in self.versions() {
            if let Err(e) = version.model.checkpoint().check() {
                self.fail(&version.name, &version.number, Refusal::from(e).message);
            }
        }
    }

    /// Orders a change; whoever looks after the models answers.
    pub async fn order(&self, what: Change, model: String, number: Option<String>) -> Answer<()> {
        let nobody = || Refusal::new(409, "no_repository", "the server was started without a repository of models");
        if !self.is_kept.load(Ordering::Relaxed) {
            return Err(nobody());
        }
        let (done, answer) = oneshot::channel();
        let order = Order { what, model, number, done };
        let sent = self.orders.lock().unwrap_or_else(PoisonError::into_inner).send(order).is_ok();
        match answer.await {
            Ok(Ok(())) if sent => Ok(()),
            Ok(Err(why)) => Err(Refusal::new(400, "load_failed", why)),
            _ => Err(nobody()),
        }
    }

    /// The next order, if one comes in time.
    pub fn next_order(&self, at_most: Duration) -> Option<Order> {
        self.is_kept.store(true, Ordering::Relaxed);
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(at_most).ok()
    }
}

/// A name whose default has gone means the highest version that can be used.
fn set_default(entries: &mut [Entry], name: &str) {
    let is_ready = |e: &Entry| e.name == name && matches!(e.state, State::Ready(_));
    if entries.iter().any(|e| is_ready(e) && e.is_default) {
        return;
    }
    entries.iter_mut().filter(|e| e.name == name).for_each(|e| e.is_default = false);
    let rank = |number: &str| number.parse::<u64>().unwrap_or(0);
    let best = entries.iter_mut().filter(|e| is_ready(e)).max_by_key(|e| rank(&e.number));
    best.into_iter().for_each(|e| e.is_default = true);
}
