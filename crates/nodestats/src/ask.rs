//! Wiring of `nodestats ask`.

use std::io::Write as _;
use std::time::{Duration, Instant};

use nodestats_wire::client::Client;

use crate::arguments::Ask;

/// Between two attempts, while there is no answer.
const RETRY: Duration = Duration::from_secs(1);

/// `nodestats ask`.
pub(crate) async fn run(question: Ask) -> anyhow::Result<()> {
    let client = Client::new(&question.server, question.patience)?.with_files(
        question.certificate_authority.as_deref(),
        question.fingerprint,
        question.token_file.as_deref(),
    )?;
    let begin = Instant::now();
    let body = loop {
        match client.get(&question.path, &[]).await {
            Ok(body) => break body,
            Err(error) if error.is_temporary() && begin.elapsed() < question.patience => {
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&body)?;
    stdout.write_all(b"\n")?;
    Ok(())
}
