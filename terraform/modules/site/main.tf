# One site: network, key, and the hosts of every role in one region. Both stacks are made of it.

variable "site" {
  description = "Its name: primary or standby."
  type        = string
}
variable "cidr" { type = string }
variable "peer_cidr" {
  description = "The network of the other site."
  type        = string
}
variable "database_profile" {
  description = "Instance profile of every host but controllers."
  type        = string
}
variable "controller_profile" { type = string }

# What differs between installations. Both stacks hand it on as it is, so that what they may say is written here once.
variable "settings" {
  type = object({
    # Name of the cluster, as in cluster.name.
    cluster = string
    # Availability zones that hosts are spread over.
    zones = list(string)
    # A Debian 12 image.
    image = string
    # URL of the stormglass package.
    package = string
    # Host name to the text of its agent.toml or controller.toml; secrets in it are references.
    configuration = map(string)
    # How many hosts of each role.
    hosts = optional(map(number), { database = 2, proxy = 2, controller = 1, application = 1 })
    instance_types = optional(map(string), {
      database = "r7i.large", proxy = "c7i.large", controller = "t3.small", application = "c7i.large"
    })
    data_gigabytes = optional(number, 200)
  })
}

locals {
  # Host name to subnet, one zone after the other.
  hosts = {
    for role, count in var.settings.hosts : role => {
      for index in range(count) : "${var.settings.cluster}-${var.site}-${role}${index + 1}" => module.network.subnets[index % length(var.settings.zones)]
    }
  }
}

resource "aws_kms_key" "this" {
  description             = "disks and backups of ${var.settings.cluster}, ${var.site}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
}

module "network" {
  source    = "../network"
  name      = "${var.settings.cluster}-${var.site}"
  cidr      = var.cidr
  peer_cidr = var.peer_cidr
  zones     = var.settings.zones
}

module "hosts" {
  source           = "../hosts"
  for_each         = local.hosts
  name             = var.settings.cluster
  role             = each.key
  hosts            = each.value
  image            = var.settings.image
  instance_type    = var.settings.instance_types[each.key]
  security_groups  = [module.network.security_group]
  instance_profile = each.key == "controller" ? var.controller_profile : var.database_profile
  kms_key          = aws_kms_key.this.arn
  data_gigabytes   = each.key == "database" ? var.settings.data_gigabytes : 0
  package          = var.settings.package
  configuration    = { for host, subnet in each.value : host => lookup(var.settings.configuration, host, "") }
}

output "vpc" { value = module.network.vpc }
output "route_table" { value = module.network.route_table }
output "kms_key" { value = aws_kms_key.this.arn }
output "addresses" { value = { for role, hosts in module.hosts : role => hosts.addresses } }
