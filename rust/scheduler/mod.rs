//! Many answers at once: who is computed next, and with whom.
//!
//! A [`Request`] is submitted and becomes a [`Ticket`], from which [`Event`]s are taken; dropping the ticket cancels what is
//! left of it. A [`Scheduler`] has one thread, which owns all sequences and computes in steps: a token of every answer that
//! is being made, and as much of the prompts as keeps the step short. What one asks for never changes what another gets:
//! each has the bits that it has alone.
//!
//! Nothing here knows of HTTP, of JSON or of Python. Nothing blocks in [`Scheduler::submit`], and nobody who reads slowly
//! stops the others.
//!
//! ```no_run
//! use std::sync::Arc;
//! use llama_rs::internals::scheduler::{Generate, Limits, Request, Scheduler, Work};
//! use llama_rs::{Interrupt, Model, Options, SessionOptions};
//!
//! let model = Arc::new(Model::open("model.gguf".as_ref())?);
//! let prompt = model.tokenizer()?.encode("Once upon a time", true, false)?;
//! let scheduler = Scheduler::start(Limits::default())?;
//! let work = Work::Generate(Generate::new(&model, prompt, Options::default(), 1)?);
//! let mut ticket = scheduler.submit(Request::new(&model, SessionOptions::default(), work))?;
//! while let Some(event) = ticket.next(&Interrupt::never())? {
//!     print!("{}", event.text);
//! }
//! # Ok::<(), llama_rs::Error>(())
//! ```

mod core;
mod cost;
mod group;
mod inline;
mod memory;
mod prefix;
mod request;
mod thread;
mod ticket;

pub use inline::Inline;
pub use memory::available_memory;
pub use request::{
    AnyAnswer, Choice, End, Event, Finish, Form, Generate, Limits, PromptLogprobs, Rejected, Request, Stats,
    TokenLogprob, Usage, Vectors, Work,
};
pub use thread::Scheduler;
pub use ticket::Ticket;
