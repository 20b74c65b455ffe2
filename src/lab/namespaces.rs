//! Lab hosts as network namespaces: how they are made, and how a process is started in one.
//!
//! Root makes them in namespaces of the run's own (network and mounts), then gives way to the lab's user, who keeps two
//! rights: to enter them, and to put the network before the hosts. Invariant: nothing of it is visible outside, and the
//! kernel removes all of it with the last process inside, however that ended.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use super::manifest::Manifest;
use super::place::User;

/// Where the client stands, and the lab's own view of everything.
pub const OUTSIDE: &str = "outside";

/// The namespace of the process that carries packets between the others.
pub const SWITCH: &str = "switch";

/// Every host, with the last byte of its addresses.
pub const HOSTS: [(&str, u8); 8] = [
    ("controller", 1),
    ("prometheus", 2),
    ("p1", 11),
    ("p2", 12),
    ("n1", 101),
    ("n2", 102),
    ("n3", 103),
    (OUTSIDE, 254),
];

/// The network of the hosts.
pub const NETWORK: &str = "10.213.0.0/24";

/// Where tunnels end.
pub const TUNNEL_PORT: u16 = 4789;

/// Where a namespace's file is, inside the lab.
const FOLDER: &str = "/run/netns";

/// The switch's number in the network below the hosts'.
const TUNNEL_END: u8 = 253;

/// Makes a card for each host: a tunnel to the switch, over a network below that nobody uses otherwise.
/// Segmentation is off, since the switch takes packets as a wire does. Arguments: uid, gid, `name:number`…, `--`, program
/// and its arguments.
const SCRIPT: &str = r#"set -e
uid=$1 gid=$2; shift 2
mkdir -p /run/netns
mount -t tmpfs -o mode=0755 stormglass /run/netns
inside() { nsenter --net="/run/netns/$@"; }
touch /run/netns/outside
mount --bind /proc/self/ns/net /run/netns/outside
ip link set lo up
ip netns add switch
ip -n switch link set lo up
ip -n switch link add below type bridge
ip -n switch link set below mtu 9200 up
ip -n switch addr add 10.214.0.253/24 dev below
while [ "$1" != -- ]; do
    host=${1%:*} number=${1#*:}; shift
    [ "$host" = outside ] || ip netns add "$host"
    inside "$host" sh -c 'for file in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 > "$file"; done 2>/dev/null' || true
    ip -n switch link add "port$number" mtu 9200 type veth peer name below mtu 9200 netns "$host"
    ip -n switch link set "port$number" master below up
    ip -n "$host" link set lo up
    ip -n "$host" link set below up
    ip -n "$host" addr add "10.214.0.$number/24" dev below
    mac=$(printf '02:00:00:00:00:%02x' "$number")
    ip -n "$host" link add lab address "$mac" mtu 9000 type vxlan id 1 remote 10.214.0.253 dstport 4789 nolearning
    ip -n "$host" link set lab gso_max_segs 1
    ip -n "$host" link set lab up
    ip -n "$host" addr add "10.213.0.$number/24" dev lab
done
shift
exec setpriv --reuid="$uid" --regid="$gid" --clear-groups --inh-caps=+sys_admin,+sys_nice --ambient-caps=+sys_admin,+sys_nice -- "$@"
"#;

/// The number of a host.
pub fn number(host: &str) -> Option<u8> {
    HOSTS.iter().find(|(name, _)| *name == host).map(|(_, number)| *number)
}

/// The address of a host.
pub fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 213, 0, number)
}

/// The end of a host's tunnel on its own side.
pub fn tunnel_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 214, 0, number)
}

/// The end of every tunnel.
pub fn tunnel_end() -> Ipv4Addr {
    tunnel_address(TUNNEL_END)
}

/// What this machine lacks; `None` if namespaces can be made.
pub fn missing() -> Option<String> {
    let trial = "ip link set lo up && ip link add trial type vxlan id 1 remote 127.0.0.1 dstport 4789 \
                 && setpriv --inh-caps=+sys_admin --ambient-caps=+sys_admin nsenter --net=/proc/self/ns/net true";
    let tried =
        Command::new("unshare").args(["--net", "--mount", "--", "sh", "-c", trial]).stdin(Stdio::null()).output();
    let said = match tried {
        Ok(output) if output.status.success() => return None,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    Some(format!(
        "hosts as network namespaces need root with every capability, iproute2 (ip), util-linux (unshare, nsenter, setpriv) \
         and VXLAN in the kernel (modprobe vxlan); what failed here: {said}"
    ))
}

/// Program and arguments that make the namespaces and run `program` in the middle of them, as `user`.
pub fn around(user: &User, program: &Path) -> (OsString, Vec<OsString>) {
    let mut arguments: Vec<OsString> =
        ["--net", "--mount", "--", "sh", "-c", SCRIPT, "namespaces"].map(Into::into).into();
    arguments.extend([user.uid.to_string().into(), user.gid.to_string().into()]);
    arguments.extend(HOSTS.map(|(name, number)| OsString::from(format!("{name}:{number}"))));
    arguments.extend(["--".into(), program.as_os_str().to_owned()]);
    ("unshare".into(), arguments)
}

/// `command`, started in the namespace of `host`, without the right to leave it.
pub fn enter(host: &str, command: &Command) -> Command {
    let mut inside = Command::new("nsenter");
    inside.arg(format!("--net={FOLDER}/{host}")).arg("--");
    if let Some(nice) = priority(host, command) {
        inside.args(["nice", "-n", nice]);
    }
    inside
        .args(["setpriv", "--inh-caps=-all", "--ambient-caps=-all", "--"])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => inside.env(name, value),
            None => inside.env_remove(name),
        };
    }
    inside
}

/// Who goes before others where hosts starve. A wire does not wait for a processor; agents and controllers have what their
/// service files give them, which a limit alone does not allow everywhere.
fn priority(host: &str, command: &Command) -> Option<&'static str> {
    let is_service = command.get_args().next().is_some_and(|verb| verb == "agent" || verb == "controller");
    match host {
        SWITCH => Some("-15"),
        _ if is_service => Some("-10"),
        _ => None,
    }
}

/// The words before a command that bring it to where the client of a running lab stands.
pub fn door(manifest: &Manifest) -> anyhow::Result<Vec<String>> {
    let carrier = manifest.process("network").and_then(|entry| entry.identity).filter(|identity| identity.is_alive());
    let carrier = carrier.context("the lab's network does not run any more: take it down with stormglass lab down")?;
    let words = format!("nsenter --target={} --mount -- nsenter --net={FOLDER}/{OUTSIDE} --", carrier.pid);
    Ok(words.split(' ').map(str::to_owned).collect())
}

/// Runs this very command again outside the hosts of the lab of `manifest`, and returns its exit code.
pub fn again_outside(manifest: &Manifest) -> anyhow::Result<u8> {
    if !super::unprivileged::is_root() {
        super::say("the hosts of this lab are network namespaces: only root reaches them; run the command with sudo");
        return Ok(super::exit::USAGE);
    }
    let door = door(manifest)?;
    let status = Command::new("nsenter")
        .args(&door[1..])
        .arg(super::up::own_program()?)
        .args(std::env::args_os().skip(1))
        .status()
        .context("run nsenter (package util-linux)")?;
    Ok(super::unprivileged::code_of(status))
}

/// True in the middle of a lab's namespaces, where [`around`] brings a command.
pub fn is_inside() -> bool {
    Path::new(FOLDER).join(SWITCH).exists()
        && number(OUTSIDE).is_some_and(|outside| std::net::TcpListener::bind((address(outside), 0)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_keeps_its_arguments_and_environment_inside_a_host() {
        let mut command = Command::new("/bin/prog");
        command.args(["a", "--b"]).env("KEY", "value");
        let inside = enter("n1", &command);
        let line: Vec<String> = inside.get_args().map(|part| part.to_string_lossy().into_owned()).collect();
        assert!(line.contains(&"--net=/run/netns/n1".to_owned()) && line.contains(&"--ambient-caps=-all".to_owned()));
        assert_eq!(line[line.len() - 3..], ["/bin/prog", "a", "--b"]);
        assert_eq!(inside.get_envs().count(), 1);
    }

    #[test]
    fn the_wire_and_the_services_go_before_others() {
        let of = |host: &str, verb: &str| priority(host, Command::new("stormglass").arg(verb));
        assert_eq!(
            (of(SWITCH, "lab"), of("n1", "agent"), of("controller", "controller")),
            (Some("-15"), Some("-10"), Some("-10"))
        );
        assert_eq!(of("prometheus", "--config.file"), None);
    }

    #[test]
    fn the_script_and_the_code_agree_on_the_numbers() {
        assert!(SCRIPT.contains(&format!("remote {} dstport {TUNNEL_PORT}", tunnel_end())));
        assert!(SCRIPT.contains(&format!("addr add {}/24 dev below", tunnel_end())));
        assert!(NETWORK.starts_with("10.213.0.") && SCRIPT.contains("\"10.213.0.$number/24\" dev lab"));
    }
}
