#[derive(clap::Args)]
pub struct Args {}
pub fn main(_: Args) -> anyhow::Result<()> {
    Ok(())
}
