# One site: network, key, and the hosts of every role in one region. Both stacks are made of it.

variable "cluster" { type = string }
variable "site" {
  description = "Its name: primary or standby."
  type        = string
}
variable "cidr" { type = string }
variable "peer_cidr" {
  description = "The network of the other site."
  type        = string
}
variable "zones" { type = list(string) }
variable "hosts" {
  description = "How many hosts of each role."
  type        = map(number)
}
variable "image" { type = string }
variable "instance_types" { type = map(string) }
variable "data_gigabytes" { type = number }
variable "package" { type = string }
variable "database_profile" {
  description = "Instance profile of every host but controllers."
  type        = string
}
variable "controller_profile" { type = string }
variable "configuration" {
  description = "Host name to the text of its configuration; secrets in it are references."
  type        = map(string)
}

locals {
  # Host name to subnet, one zone after the other.
  hosts = {
    for role, count in var.hosts : role => {
      for index in range(count) : "${var.cluster}-${var.site}-${role}${index + 1}" => module.network.subnets[index % length(var.zones)]
    }
  }
}

resource "aws_kms_key" "this" {
  description             = "disks and backups of ${var.cluster}, ${var.site}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
}

module "network" {
  source    = "../network"
  name      = "${var.cluster}-${var.site}"
  cidr      = var.cidr
  peer_cidr = var.peer_cidr
  zones     = var.zones
}

module "hosts" {
  source           = "../hosts"
  for_each         = local.hosts
  name             = var.cluster
  role             = each.key
  hosts            = each.value
  image            = var.image
  instance_type    = var.instance_types[each.key]
  security_groups  = [module.network.security_group]
  instance_profile = each.key == "controller" ? var.controller_profile : var.database_profile
  kms_key          = aws_kms_key.this.arn
  data_gigabytes   = each.key == "database" ? var.data_gigabytes : 0
  package          = var.package
  configuration    = { for host, subnet in each.value : host => lookup(var.configuration, host, "") }
}

output "vpc" { value = module.network.vpc }
output "route_table" { value = module.network.route_table }
output "kms_key" { value = aws_kms_key.this.arn }
output "addresses" { value = { for role, hosts in module.hosts : role => hosts.addresses } }
