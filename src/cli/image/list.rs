//! `nixbox image list`. The command only reads, and takes no lock.

use std::path::PathBuf;

use serde::Serialize;

use crate::cli::error::{self, Outcome};
use crate::cli::success;
use crate::image::store::{ImageDescription, StoredImage};

/// List the images of this user
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox image list --json | jq -r '.[].name'")]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct ListedImage {
    #[serde(flatten)]
    description: ImageDescription,
    directory: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Outcome {
    let mut images = Vec::new();
    for image in super::store()?.list()? {
        match image {
            Ok(StoredImage { description, directory }) => images.push(ListedImage { description, directory }),
            Err(error) => error::print_stderr(&format!("nixbox: {}\n", error::chain(&error))),
        }
    }
    if arguments.json {
        error::print_json(&images)?;
        return success();
    }
    error::print(&table(&images))?;
    success()
}

fn table(images: &[ListedImage]) -> String {
    if images.is_empty() {
        return "there is no image: `nixbox image import SOURCE` makes one".to_owned();
    }
    let width = images.iter().map(|image| image.description.name.as_str().len()).max().unwrap_or(0).max(4);
    let row = |image: &ListedImage| {
        let ImageDescription { name, size, kernel, source, .. } = &image.description;
        format!("{:<width$}  {:<8}  {kernel:<24}  {source}", name.as_str(), size.to_string())
    };
    let rows = images.iter().map(row);
    let head = format!("{:<width$}  {:<8}  {:<24}  SOURCE", "NAME", "SIZE", "KERNEL");
    std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n")
}
