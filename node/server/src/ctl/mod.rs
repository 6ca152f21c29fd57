//! `evergate ctl`: the administration API on the command line.

mod backup;
mod capture;
mod cluster;
mod commits;
mod tables;

use evergate_proto::admin::{
    ApplyConfigRequest, GetStatusRequest, InitiateRequest, ListSasRequest, RekeyRequest,
    TerminateRequest, admin_client::AdminClient, rekey_request, terminate_request,
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint, Uri},
};

/// Arguments of `evergate ctl`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Socket of the member
    #[arg(
        long,
        global = true,
        default_value = "/run/evergate/admin.sock",
        env = "EVERGATE_SOCKET"
    )]
    socket: PathBuf,
    /// Answer in JSON
    #[arg(long, global = true)]
    json: bool,
    /// Seconds to wait for an answer
    #[arg(long, global = true, default_value_t = 60)]
    timeout: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// What the member is and does
    Status,
    /// The IKE SAs with their Child SAs
    Sas {
        /// Only those of this connection
        #[arg(long)]
        connection: Option<String>,
        /// Only the one with this SPI of ours
        #[arg(long, value_parser = spi64)]
        ike: Option<u64>,
        /// Only established ones
        #[arg(long)]
        established: bool,
        /// Also those that are gone, but still answer retransmissions
        #[arg(long, conflicts_with = "established")]
        all: bool,
    },
    /// Set up a Child SA, and its IKE SA if there is none; wait until it is up
    Initiate {
        /// The connection
        connection: String,
        /// The child; the connection's first if left out
        child: Option<String>,
    },
    /// Delete SAs
    Terminate(Terminate),
    /// Replace an SA by a new one
    Rekey(Rekey),
    /// Capture the packets of an SA, in the clear and encrypted, as a file for Wireshark
    Capture(capture::Options),
    /// The members of the cluster
    Members,
    /// Let members come and go
    #[command(subcommand)]
    Member(cluster::MemberCommand),
    /// The virtual gateways, and who has them
    Gateways,
    /// Move a virtual gateway to another member; wait until it is there
    Move {
        /// The gateway
        gateway: String,
        /// The member that should have it
        member: String,
    },
    /// Take all virtual gateways away from a member; wait until it has none
    Drain {
        /// The member
        member: String,
        /// Let it have gateways again
        #[arg(long)]
        undo: bool,
    },
    /// What is wrong with the cluster
    Doctor,
    /// The cluster keys that members have
    Keys,
    /// Write what the cluster is configured to do, with its secrets and without its SAs, to a file that the cluster key opens
    Backup {
        /// The file, which must not exist
        file: PathBuf,
    },
    /// The policy document
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Terminate {
    /// An IKE SA, by our SPI (0x and hexadecimal, or decimal)
    #[arg(long, value_parser = spi64)]
    ike: Option<u64>,
    /// A Child SA, by our SPI (0x and hexadecimal, or decimal)
    #[arg(long, value_parser = spi32)]
    child: Option<u32>,
    /// All IKE SAs of a connection
    #[arg(long)]
    connection: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Rekey {
    /// An IKE SA, by our SPI (0x and hexadecimal, or decimal)
    #[arg(long, value_parser = spi64, required_unless_present = "child", conflicts_with = "child")]
    ike: Option<u64>,
    /// A Child SA, by our SPI (0x and hexadecimal, or decimal)
    #[arg(long, value_parser = spi32)]
    child: Option<u32>,
    /// Authenticate again, with a new IKE SA in the place of this one
    #[arg(long, requires = "ike")]
    reauth: bool,
}

#[derive(Debug, clap::Subcommand)]
enum ConfigCommand {
    /// Replace connections, secrets and pools by those of a file
    Apply {
        /// The file
        file: PathBuf,
        /// Only if the policy has this version now
        #[arg(long)]
        expected_version: Option<u64>,
    },
}

fn spi64(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "expected 0x and hexadecimal digits, or a decimal number".to_owned())
}

fn spi32(text: &str) -> Result<u32, String> {
    u32::try_from(spi64(text)?).map_err(|_| "expected a number of 32 bits".to_owned())
}

/// Carries out a command; what went wrong goes to the standard error.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(call(arguments)),
        Err(e) => Err(e.to_string()),
    };
    match done {
        Ok(text) => match write!(std::io::stdout(), "{text}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "error: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn call(arguments: &Arguments) -> Result<String, String> {
    let mut client = connect(&arguments.socket).await?;
    let called = match &arguments.command {
        Command::Status => status(&mut client, arguments).await,
        Command::Sas { .. } => sas(&mut client, arguments).await,
        Command::Initiate { connection, child } => {
            initiate(&mut client, arguments, connection, child.as_deref()).await
        }
        Command::Terminate(target) => terminate(&mut client, arguments, target).await,
        Command::Capture(options) => return capture::run(&mut client, arguments, options).await,
        Command::Backup { file } => return backup::run(&mut client, arguments, file).await,
        Command::Rekey(target) => rekey(&mut client, arguments, target).await,
        Command::Members
        | Command::Member(_)
        | Command::Gateways
        | Command::Doctor
        | Command::Keys
        | Command::Move { .. }
        | Command::Drain { .. } => cluster::call(&mut client, arguments).await,
        Command::Config(ConfigCommand::Apply {
            file,
            expected_version,
        }) => {
            let request = document(file, *expected_version)?;
            let applied = apply(&mut client, arguments, file, request).await;
            return applied.map_err(|status| in_file(&file.display(), arguments, &status));
        }
    };
    called.map_err(|status| said(arguments, &status))
}

type Client = AdminClient<Channel>;

async fn status(client: &mut Client, arguments: &Arguments) -> Result<String, Status> {
    let status = client
        .get_status(timed(arguments, GetStatusRequest {}))
        .await?;
    Ok(tables::status(&status.into_inner(), arguments.json))
}

async fn sas(client: &mut Client, arguments: &Arguments) -> Result<String, Status> {
    let Command::Sas {
        connection,
        ike,
        established,
        all,
    } = &arguments.command
    else {
        return Ok(String::new());
    };
    let request = ListSasRequest {
        connection: connection.clone(),
        ike: *ike,
        established_only: *established,
        closed: *all,
        count_everywhere: true,
    };
    let mut stream = client
        .list_sas(timed(arguments, request))
        .await?
        .into_inner();
    let mut sas = Vec::new();
    while let Some(sa) = stream.message().await? {
        sas.push(sa);
    }
    Ok(tables::sas(&sas, arguments.json))
}

async fn initiate(
    client: &mut Client,
    arguments: &Arguments,
    connection: &str,
    child: Option<&str>,
) -> Result<String, Status> {
    let request = InitiateRequest {
        connection: connection.to_owned(),
        child: child.map(str::to_owned),
    };
    let up = client
        .initiate(timed(arguments, request))
        .await?
        .into_inner();
    let (ike, child) = (tables::spi64(up.ike), tables::spi32(up.child));
    let line = format!("Child SA {child} is up, in IKE SA {ike}\n");
    Ok(tables::either(
        arguments.json,
        &json!({ "ike": ike, "child": child }),
        line,
    ))
}

async fn terminate(
    client: &mut Client,
    arguments: &Arguments,
    target: &Terminate,
) -> Result<String, Status> {
    let target = match (target.ike, target.child, &target.connection) {
        (Some(id), ..) => terminate_request::Target::Ike(id),
        (_, Some(spi), _) => terminate_request::Target::Child(spi),
        (.., name) => terminate_request::Target::Connection(name.clone().unwrap_or_default()),
    };
    let request = TerminateRequest {
        target: Some(target),
    };
    let done = client
        .terminate(timed(arguments, request))
        .await?
        .into_inner();
    let line = format!("{} terminated\n", done.count);
    Ok(tables::either(
        arguments.json,
        &json!({ "count": done.count }),
        line,
    ))
}

async fn rekey(
    client: &mut Client,
    arguments: &Arguments,
    target: &Rekey,
) -> Result<String, Status> {
    let target_of = match (target.ike, target.child) {
        (Some(id), _) => rekey_request::Target::Ike(id),
        (None, spi) => rekey_request::Target::Child(spi.unwrap_or_default()),
    };
    let of_ike = matches!(target_of, rekey_request::Target::Ike(_));
    let request = RekeyRequest {
        target: Some(target_of),
        reauth: target.reauth,
    };
    let new = client
        .rekey(timed(arguments, request))
        .await?
        .into_inner()
        .spi;
    if new == 0 {
        let line = "the peer, who began the IKE SA, was asked to authenticate again\n".to_owned();
        let said = json!({ "spi": null });
        return Ok(tables::either(arguments.json, &said, line));
    }
    let spi = if of_ike {
        tables::spi64(new)
    } else {
        format!("0x{new:08x}")
    };
    let line = format!("replaced by {spi}\n");
    Ok(tables::either(arguments.json, &json!({ "spi": spi }), line))
}

async fn apply(
    client: &mut Client,
    arguments: &Arguments,
    file: &Path,
    request: ApplyConfigRequest,
) -> Result<String, Status> {
    let done = client
        .apply_config(timed(arguments, request))
        .await?
        .into_inner();
    let name = file.display();
    let mut text: String = done
        .warnings
        .iter()
        .map(|w| format!("{name}:{w}\n"))
        .collect();
    let what = if done.changed { "applied" } else { "unchanged" };
    text += &format!("policy version {} {what}\n", done.version);
    let value =
        json!({ "version": done.version, "changed": done.changed, "warnings": done.warnings });
    Ok(tables::either(arguments.json, &value, text))
}

/// A client of the member behind a socket.
pub(crate) async fn connect(socket: &Path) -> Result<AdminClient<Channel>, String> {
    let path = socket.to_owned();
    // The address is of no meaning: the connector goes to the socket.
    let endpoint = Endpoint::from_static("http://evergate").connect_timeout(Duration::from_secs(5));
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|e| {
            let cause = std::error::Error::source(&e).map_or_else(|| e.to_string(), innermost);
            format!("cannot reach a member at {}: {cause}", socket.display())
        })?;
    Ok(AdminClient::new(channel))
}

fn innermost(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => innermost(source),
        None => error.to_string(),
    }
}

fn timed<T>(arguments: &Arguments, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs(arguments.timeout));
    request
}

/// The document of a file, and from where its paths count.
fn document(file: &Path, expected_version: Option<u64>) -> Result<ApplyConfigRequest, String> {
    let wrong = |e| format!("cannot read {}: {e}", file.display());
    let toml = fs::read_to_string(file).map_err(wrong)?;
    let absolute = file.canonicalize().map_err(wrong)?;
    let directory = absolute.parent().unwrap_or(Path::new("/"));
    Ok(ApplyConfigRequest {
        toml,
        expected_version,
        directory: directory.to_string_lossy().into_owned(),
    })
}

fn said(arguments: &Arguments, status: &Status) -> String {
    match status.code() {
        Code::Cancelled | Code::DeadlineExceeded => {
            format!(
                "no answer within {} s; what was asked goes on",
                arguments.timeout
            )
        }
        _ => status.message().to_owned(),
    }
}

/// Problems of a document come a line each, with the place in the file.
fn in_file(name: &dyn std::fmt::Display, arguments: &Arguments, status: &Status) -> String {
    if status.code() != Code::InvalidArgument {
        return said(arguments, status);
    }
    let lines: Vec<String> = status
        .message()
        .lines()
        .map(|line| format!("{name}:{line}"))
        .collect();
    format!("{name} is not applied\n{}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn spis_are_hexadecimal_with_prefix_and_decimal_without() {
        let rekey = |spi: &str| match Line::try_parse_from(["ctl", "rekey", "--child", spi])
            .map(|l| l.arguments.command)
        {
            Ok(Command::Rekey(target)) => target.child,
            _ => None,
        };
        assert_eq!(rekey("0x10000000"), Some(0x1000_0000));
        assert_eq!(rekey("10000000"), Some(10_000_000));
        assert_eq!(rekey("0x100000000"), None);
        assert_eq!(rekey("c0ffee"), None);
    }

    #[test]
    fn exactly_one_target_is_named() {
        let parse = |args: &[&str]| Line::try_parse_from([&["ctl"], args].concat()).is_ok();
        assert!(parse(&["terminate", "--connection", "a"]));
        assert!(!parse(&["terminate"]));
        assert!(!parse(&["terminate", "--connection", "a", "--ike", "1"]));
        assert!(!parse(&["rekey"]));
        assert!(parse(&["sas", "--json", "--socket", "/x"]));
    }
}
