# What both sites share, and the primary stack owns: the repository, the zone, identities, and the peering of the two networks.

variable "standby_region" {
  type    = string
  default = "eu-west-1"
}

variable "standby_vpc" {
  description = "Output `vpc` of the standby stack; empty until it is there."
  type        = string
  default     = ""
}

variable "zone" {
  description = "Private zone of the cluster, such as db.example.internal."
  type        = string
}

variable "repository_bucket" { type = string }
variable "issuer" { type = string }
variable "subject" { type = string }
variable "pipeline_policy_arn" { type = string }

module "repository" {
  source  = "../modules/repository"
  bucket  = var.repository_bucket
  kms_key = module.site.kms_key
}

module "dns" {
  source        = "../modules/dns"
  zone          = var.zone
  name          = "primary.${var.zone}"
  networks      = merge({ (module.site.vpc) = var.region }, var.standby_vpc == "" ? {} : { (var.standby_vpc) = var.standby_region })
  first_address = values(module.site.addresses["proxy"])[0]
}

module "identity" {
  source              = "../modules/identity"
  name                = var.settings.cluster
  repository_arn      = module.repository.arn
  zone_arn            = module.dns.zone_arn
  kms_key             = module.site.kms_key
  issuer              = var.issuer
  subject             = var.subject
  pipeline_policy_arn = var.pipeline_policy_arn
}

resource "aws_vpc_peering_connection" "standby" {
  count       = var.standby_vpc == "" ? 0 : 1
  vpc_id      = module.site.vpc
  peer_vpc_id = var.standby_vpc
  peer_region = var.standby_region
}

resource "aws_route" "standby" {
  count                     = var.standby_vpc == "" ? 0 : 1
  route_table_id            = module.site.route_table
  destination_cidr_block    = local.peer
  vpc_peering_connection_id = aws_vpc_peering_connection.standby[0].id
}

output "peering" { value = one(aws_vpc_peering_connection.standby[*].id) }
output "database_profile" { value = module.identity.database_profile }
output "controller_profile" { value = module.identity.controller_profile }
