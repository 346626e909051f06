//! What nixbox does, and how long each part takes: the lines of `-v` and of the variable `NIXBOX_LOG`, and the table of
//! `--timings`.
//!
//! The layers below open spans of the crate `tracing`: for each transition, each request to the VMM, each program, and each
//! script and connection of the guest. This module prints a span when it has ended, or has been given up. Fields of spans are
//! names, paths and numbers. No layer puts a secret, an argument, an environment or a text of a script into a field, and spans
//! of other crates are never shown, because it is not known what they tell.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::set_global_default;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::{LookupSpan, Registry};

use super::error::{self, ExitKind, Problem};

mod timings;

pub(super) use timings::TimingsFormat;
use timings::{SpanTime, Timetable};

/// The variable that says what is printed.
const VARIABLE: &str = "NIXBOX_LOG";

/// The prefix of all modules of nixbox.
const CRATE: &str = "nixbox";

/// A value of `NIXBOX_LOG` that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error(
    "{VARIABLE} is {value:?}: it has to be \"debug\" or \"trace\", or such a level for parts of nixbox, as in \
     \"vmm=debug,guest=trace\""
)]
struct FilterError {
    value: String,
}

/// Begins to print what `-v` asks for with this many letters, or else what `NIXBOX_LOG` does, and to measure for
/// `--timings`. Costs nothing if none of them asks.
///
/// # Errors
/// If `NIXBOX_LOG` cannot be understood.
pub(super) fn begin(letters: u8, timings: Option<TimingsFormat>) -> Result<Trace, Problem> {
    let variable = std::env::var_os(VARIABLE).unwrap_or_default();
    let printed = match letters {
        0 => filter(&variable.to_string_lossy())
            .map_err(|error| Problem::new(ExitKind::Usage, error).or_hint("nothing was done"))?,
        1 => of_crate(LevelFilter::DEBUG),
        2.. => of_crate(LevelFilter::TRACE),
    };
    let since = Instant::now();
    let timetable = timings.map(|format| (format, Arc::<Timetable>::default()));
    let seen = if timings.is_some() { of_crate(LevelFilter::TRACE) } else { printed.clone() };
    if seen.iter().next().is_some() {
        let collected = timetable.as_ref().map(|(_, timetable)| Arc::clone(timetable));
        let layer = SpanLayer { since, printed, collected };
        // This is the only subscriber of the process, so it is accepted.
        set_global_default(Registry::default().with(layer.with_filter(seen))).ok();
    }
    Ok(Trace { since, timetable })
}

/// Whether lines are printed or times are measured, so that no bar may be drawn.
pub(super) fn is_on() -> bool {
    LevelFilter::current() != LevelFilter::OFF
}

fn of_crate(level: LevelFilter) -> Targets {
    Targets::new().with_target(CRATE, level)
}

/// The filter that a value of `NIXBOX_LOG` asks for.
fn filter(value: &str) -> Result<Targets, FilterError> {
    let wrong = || FilterError { value: value.to_owned() };
    let mut filter = Targets::new();
    for part in value.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (module, level) = part.split_once('=').unwrap_or(("", part));
        // An empty text would be the level "error".
        let level = Some(level.trim()).filter(|level| !level.is_empty()).ok_or_else(wrong)?;
        let level: LevelFilter = level.parse().map_err(|_| wrong())?;
        let module = module.trim();
        let module = module.strip_prefix(CRATE).unwrap_or(module).trim_start_matches("::");
        if !module.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == ':') {
            return Err(wrong());
        }
        let target = if module.is_empty() { CRATE.to_owned() } else { format!("{CRATE}::{module}") };
        filter = filter.with_target(target, level);
    }
    Ok(filter)
}

/// What this process measures, from [`begin`] on.
pub(super) struct Trace {
    since: Instant,
    timetable: Option<(TimingsFormat, Arc<Timetable>)>,
}

impl Trace {
    /// Prints the table of `--timings`, if it was asked for. To be called when the command is done.
    pub(super) fn end(self) {
        if let Some((format, timetable)) = self.timetable {
            error::print_stderr(&timetable.shown(format, self.since.elapsed()));
        }
    }
}

/// Prints and collects spans that have ended.
struct SpanLayer {
    since: Instant,
    /// The spans that are printed.
    printed: Targets,
    collected: Option<Arc<Timetable>>,
}

/// What is kept of a span while it is open.
struct OpenSpan {
    begun: Instant,
    /// When the thread that works on it began to do so, if a thread does now.
    entered: Option<Instant>,
    /// For how long threads have worked on it.
    busy: Duration,
    /// Its name and the values of its fields.
    words: Words,
}

/// Words with a space before each.
struct Words(String);

impl Words {
    fn push(&mut self, word: fmt::Arguments<'_>) {
        // A String takes all that is written.
        write!(self.0, " {word}").unwrap_or_default();
    }
}

impl Visit for Words {
    fn record_debug(&mut self, _: &Field, value: &dyn fmt::Debug) {
        self.push(format_args!("{value:?}"));
    }

    fn record_str(&mut self, _: &Field, value: &str) {
        self.push(format_args!("{value}"));
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for SpanLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut words = Words(span.name().to_owned());
        attributes.record(&mut words);
        span.extensions_mut().insert(OpenSpan {
            begun: Instant::now(),
            entered: None,
            busy: Duration::ZERO,
            words,
        });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<OpenSpan>() {
            values.record(&mut open.words);
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<OpenSpan>() {
            open.entered = Some(Instant::now());
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<OpenSpan>() {
            open.busy += open.entered.take().map_or(Duration::ZERO, |entered| entered.elapsed());
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let path: Vec<String> = span
            .scope()
            .from_root()
            .filter_map(|part| Some(part.extensions().get::<OpenSpan>()?.words.0.clone()))
            .collect();
        let times = span.extensions().get::<OpenSpan>().map(|open| (open.begun, open.busy));
        let Some((begun, busy)) = times else { return };
        let took = begun.elapsed();
        let metadata = span.metadata();
        if self.printed.would_enable(metadata.target(), metadata.level()) {
            let at = self.since.elapsed().as_secs_f64();
            let text = format!("nixbox: [{at:8.3} s] {} ({})\n", path.join(" > "), error::duration(took));
            error::print_stderr(&text);
        }
        if let Some(timetable) = &self.collected {
            let parent = span.parent().map(|parent| parent.id().into_u64());
            let begun = begun.saturating_duration_since(self.since);
            timetable.add(SpanTime {
                id: id.into_u64(),
                parent,
                begun,
                took,
                busy,
                text: path.into_iter().next_back().unwrap_or_default(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_filter_names_levels_and_parts_of_nixbox() {
        let shown = |value: &str, target| filter(value).unwrap().would_enable(target, &Level::DEBUG);
        assert!(shown("debug", "nixbox::vmm::client"));
        assert!(shown("trace", "nixbox::vmm::client"));
        assert!(!shown("info", "nixbox::vmm::client"));
        assert!(!shown("", "nixbox::vmm::client"));
        for value in ["vmm=debug", "nixbox::vmm=debug", " guest=off , vmm=trace", "vmm::client=debug"] {
            assert!(shown(value, "nixbox::vmm::client") && !shown(value, "nixbox::guest::shell"), "{value}");
        }
        assert!(!shown("trace", "russh::client"), "other crates may tell a secret");
        assert!(!shown("russh=trace", "russh::client"));
        for wrong in ["loud", "vmm=", "vmm=loud", "VMM=debug", "vmm[x]=debug", "=", "vmm debug"] {
            assert!(filter(wrong).unwrap_err().to_string().contains(wrong), "{wrong}");
        }
    }
}
