# A cluster of processes on the machine that applies this, with nothing but the built-in provider.
#
# All that is done to processes is done by the script `cluster`. Terraform's part is to know when: its
# functions read /proc while it plans, so a node that has died is a change like any other.

locals {
  names = [for number in range(1, var.nodes + 1) : "n${number}"]
  # The port of node i is the base plus i; the name counts from one.
  clients = { for index, name in local.names : name => "127.0.0.1:${var.client_port + index}" }
  peers   = { for index, name in local.names : name => "127.0.0.1:${var.peer_port + index}" }
  certs   = "${var.directory}/certs"
  linux   = fileexists("/proc/self/cmdline")

  # `cloudpaxos start --config`: TOML, in which strings, numbers, booleans and lists are written as in JSON.
  common = merge(
    {
      "initial-cluster" = [for name in local.names : "${name}=${local.peers[name]}"]
      "data-groups"     = var.data_groups
    },
    var.settings,
  )
  configs = {
    for name in local.names : name => join("", concat(
      ["# Written by Terraform; changes belong there.${var.restart == "" ? "" : " ${var.restart}"}\n"],
      [
        for key, value in merge(
          local.common,
          {
            "name"          = name
            "data-dir"      = "${var.directory}/${name}/data"
            "listen-client" = local.clients[name]
            "listen-peer"   = local.peers[name]
          },
          var.tls ? {
            "client-tls-dir" = "${local.certs}/${name}/client"
            "peer-tls-dir"   = "${local.certs}/${name}/peer"
            "api-token-file" = "${local.certs}/tokens"
          } : {},
        ) : "${key} = ${jsonencode(value)}\n"
      ],
    ))
  }

  # Whether the process that the pid file names is this node: a dead one has no command line, and one
  # that has been given the same number since has another.
  running = {
    for name in local.names : name => try(
      strcontains(
        file("/proc/${trimspace(file("${var.directory}/${name}/pid"))}/cmdline"),
        "${var.directory}/${name}/node.toml",
      ),
      false,
    )
  }
  intact = alltrue(values(local.running)) && (!var.tls || fileexists("${local.certs}/ca/clients.crt"))
  # The mark of the last time that nodes were started. `cluster up` leaves it when all are ready. While all
  # still run it is found again, and nothing changes; else this plan's time is another one.
  mark = local.intact ? try(trimspace(file("${var.directory}/mark")), plantimestamp()) : plantimestamp()
}

# Stands for the directory and what runs in it. It is made before a process is started and destroyed when
# nothing else is left: a destroy provisioner of the nodes themselves would not run if their start had
# failed, and leave processes behind.
resource "terraform_data" "directory" {
  input            = { directory = var.directory, remove_data = var.remove_data }
  triggers_replace = var.directory

  lifecycle {
    precondition {
      condition     = local.linux
      error_message = "This module knows processes by /proc, which Linux has."
    }
  }

  provisioner "local-exec" {
    command     = "'${path.module}/cluster' create"
    environment = { CLUSTER_DIRECTORY = self.input.directory }
  }

  provisioner "local-exec" {
    when        = destroy
    command     = "'${path.module}/cluster' down"
    environment = { CLUSTER_DIRECTORY = self.input.directory, CLUSTER_REMOVE_DATA = self.input.remove_data }
  }
}

resource "terraform_data" "nodes" {
  triggers_replace = {
    directory = terraform_data.directory.id
    binary    = try(filesha256(var.binary), "")
    path      = abspath(var.binary)
    configs   = local.configs
    mark      = local.mark
  }

  lifecycle {
    # Not a validation of the variable: that would keep a cluster whose program is gone from being destroyed.
    precondition {
      condition     = fileexists(var.binary)
      error_message = "There is no program ${var.binary}; build it with `cargo build --locked --release -p cloudpaxos`."
    }
    precondition {
      condition     = var.client_port + var.nodes <= var.peer_port || var.peer_port + var.nodes <= var.client_port
      error_message = "The ports of clients (client_port and up) and of nodes (peer_port and up) overlap."
    }
  }

  provisioner "local-exec" {
    command = "'${path.module}/cluster' up"
    environment = {
      CLUSTER_DIRECTORY        = var.directory
      CLUSTER_BINARY           = abspath(var.binary)
      CLUSTER_BINARY_SHA256    = self.triggers_replace.binary
      CLUSTER_NODES            = join(" ", local.names)
      CLUSTER_CLIENTS          = join(" ", [for name in local.names : local.clients[name]])
      CLUSTER_CONFIGS          = join(" ", [for name in local.names : base64encode(local.configs[name])])
      CLUSTER_FIXED            = "nodes=${var.nodes} data-groups=${var.data_groups} peer-port=${var.peer_port}"
      CLUSTER_TLS              = var.tls
      CLUSTER_CERTIFICATE_DAYS = var.certificate_days
      CLUSTER_READY_SECONDS    = var.ready_seconds
      CLUSTER_MARK             = self.triggers_replace.mark
    }
  }
}
