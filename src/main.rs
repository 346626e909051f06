//! The program `nixbox`: see [`nixbox::cli`].

fn main() -> std::process::ExitCode {
    nixbox::cli::main()
}
