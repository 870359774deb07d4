//! The API of a node, as the command line uses it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use reqwest::{RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::arguments::wrong;
use super::{network_dir, output};
use crate::api::Problem;
use crate::wording;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longer than a node waits for an operation to be final.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest answer that is read, so that no node can fill the memory: a block of 8 MiB of requests as
/// JSON is some 50 MiB, and nothing that a node gives is longer.
const MAX_ANSWER_BYTES: usize = 128 << 20;

/// What to do about an answer that is none of an API.
const API_HINT: &str = "give the address that stands under [api] listen in the node's node.toml; its MQTT port and that \
                        for other nodes are others";

/// Which network, and how to reach it
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = true)]
pub(super) struct NetworkArgs {
    /// Directory that `ledgermq init` made: what is needed and not given is taken from it
    #[arg(long, value_name = "DIR")]
    pub(super) network: Option<PathBuf>,
    /// API of a node, such as http://127.0.0.1:8080
    #[arg(long, value_name = "URL", value_parser = api_url)]
    api: Option<Url>,
}

impl NetworkArgs {
    /// A path that was given, or else the one that `ledgermq init` gives a file of that name.
    pub(super) fn file(&self, given: Option<&PathBuf>, option: &str, name: &str) -> anyhow::Result<PathBuf> {
        network_dir::file(given, self.network.as_ref(), option, name)
    }

    /// The APIs of the nodes that may be asked.
    pub(super) fn apis(&self) -> anyhow::Result<Vec<Url>> {
        match (&self.api, &self.network) {
            (Some(api), _) => Ok(vec![api.clone()]),
            (None, Some(dir)) => apis_below(dir),
            (None, None) => Err(wrong("give --api URL, or --network DIR as `ledgermq init` made it")),
        }
    }

    /// A client of the nodes' API.
    pub(super) fn connect(&self) -> anyhow::Result<Nodes> {
        Nodes::new(self.apis()?)
    }
}

// What a list takes; each list says itself what it is of.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    pub(super) network: NetworkArgs,
    /// Print one JSON array
    #[arg(long)]
    pub(super) json: bool,
}

/// A node's answer that it does not do what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{}", output::in_sentence(&output::plain(&.0.to_string())))]
pub(super) struct Refused(pub(super) Problem);

/// The URL of an API; `http://` may be left out.
pub(super) fn api_url(text: &str) -> Result<Url, String> {
    let given = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    Url::parse(&given)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host() && !text.starts_with('/'))
        .ok_or_else(|| "give the address of a node's API, such as http://127.0.0.1:8080".to_owned())
}

pub(super) fn apis_below(dir: &Path) -> anyhow::Result<Vec<Url>> {
    let nodes = network_dir::node_settings(dir)?;
    nodes.iter().map(|node| Ok(Url::parse(&format!("http://{}", node.api.listen))?)).collect()
}

/// The nodes of a network; each request goes to the first that can be reached.
#[derive(Debug)]
pub(super) struct Nodes {
    http: reqwest::Client,
    apis: Vec<Url>,
    max_bytes: usize,
}

impl Nodes {
    /// A client of these APIs; one of them is enough.
    pub(super) fn new(apis: Vec<Url>) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .build()
            .context("cannot make an HTTP client")?;
        Ok(Self { http, apis, max_bytes: MAX_ANSWER_BYTES })
    }

    /// The same that reads no answer of more than so many bytes.
    pub(super) fn reading(self, max_bytes: usize) -> Self {
        Self { max_bytes, ..self }
    }

    /// Reads JSON.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> anyhow::Result<T> {
        self.send(path, |http, mut url| {
            if !query.is_empty() {
                url.query_pairs_mut().extend_pairs(query);
            }
            http.get(url)
        })
        .await
    }

    /// Sends JSON and reads JSON.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.send(path, |http, url| http.post(url).json(body)).await
    }

    /// Reads bytes.
    pub(super) async fn bytes(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let (_, bytes) = self.exchange(path, reqwest::Client::get).await?;
        Ok(bytes)
    }

    async fn send<T: DeserializeOwned>(
        &self,
        path: &str,
        request: impl Fn(&reqwest::Client, Url) -> RequestBuilder,
    ) -> anyhow::Result<T> {
        let (api, bytes) = self.exchange(path, request).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            let what = output::plain(&wording::of_json(&error));
            anyhow!("{api} is not the API of this version ({what}); {API_HINT}")
        })
    }

    /// The bytes of a good answer, and who gave it.
    async fn exchange(
        &self,
        path: &str,
        request: impl Fn(&reqwest::Client, Url) -> RequestBuilder,
    ) -> anyhow::Result<(&Url, Vec<u8>)> {
        let mut unreachable = Vec::new();
        for api in &self.apis {
            let url = api.join(path).with_context(|| format!("{api} is not the URL of an API"))?;
            match request(&self.http, url).send().await {
                Ok(response) => return Ok((api, read(api, response, self.max_bytes).await?)),
                // Nothing was sent, so asking another node cannot do anything twice.
                Err(error) if error.is_connect() => unreachable.push(api.to_string()),
                Err(error) if error.is_timeout() => {
                    bail!("{api} did not answer within {} s: ask another node", REQUEST_TIMEOUT.as_secs())
                }
                Err(error) => return Err(no_api(api, &error)),
            }
        }
        Err(anyhow!("cannot connect to {}: is the node running?", unreachable.join(", ")))
    }
}

/// Something is there, and does not speak as an API does.
fn no_api(api: &Url, error: &reqwest::Error) -> anyhow::Error {
    // The first causes say that a request failed, the last one how.
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    anyhow!("no answer from {api}: {cause}; {API_HINT}")
}

async fn read(api: &Url, mut response: Response, max_bytes: usize) -> anyhow::Result<Vec<u8>> {
    let status = response.status();
    let mut bytes = Vec::new();
    while let Some(part) = response.chunk().await.with_context(|| format!("no whole answer from {api}"))? {
        bytes.extend_from_slice(&part);
        if bytes.len() > max_bytes {
            bail!("{api} answers more than {max_bytes} bytes: is it the API of a node?");
        }
    }
    if status.is_success() {
        return Ok(bytes);
    }
    match serde_json::from_slice::<Problem>(&bytes) {
        Ok(problem) => Err(Refused(problem).into()),
        Err(_) => bail!("{api} answered {status}; {API_HINT}"),
    }
}
